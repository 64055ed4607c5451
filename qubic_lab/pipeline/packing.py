"""Lossless packing of hidden states for slow links between ranks: fewer bytes, and the same bits when unpacked.

The last byte of a float (little-endian: sign and exponent) is one of a few values, the others (mantissa) are all but
random. So the last bytes are compressed, by Huffman codes alone, since there is no repetition to be found; the others
go as they are.
"""

import math
import zlib

import torch

_RAW_DEFLATE = -zlib.MAX_WBITS
"""Without a header and a checksum: the transport has its own."""


def pack(values: torch.Tensor) -> torch.Tensor:
    """Return the packed bytes (uint8) of a tensor of floats in main memory."""
    bytes_NB = values.contiguous().view(torch.uint8).reshape(-1, values.element_size())
    coder = zlib.compressobj(1, zlib.DEFLATED, _RAW_DEFLATE, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = coder.compress(bytes_NB[:, -1].contiguous().numpy().data) + coder.flush()
    return torch.frombuffer(bytearray(bytes_NB[:, :-1].contiguous().numpy().tobytes() + coded), dtype=torch.uint8)


def unpack(packed: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of this shape and dtype from its packed bytes."""
    count, width = math.prod(shape), dtype.itemsize
    plain = count * (width - 1)
    coded = zlib.decompress(packed[plain:].numpy().data, _RAW_DEFLATE, count)
    bytes_NB = torch.empty(count, width, dtype=torch.uint8)
    bytes_NB[:, :-1] = packed[:plain].view(count, width - 1)
    bytes_NB[:, -1] = torch.frombuffer(bytearray(coded), dtype=torch.uint8)
    return bytes_NB.view(dtype).view(shape)
