"""The worker process of a server's embeddings: lists of texts as lines of JSON in, vectors out."""

import base64
from typing import Any

from qubic_lab.errors import QubicLabError
from qubic_lab.killable import answer_lines
from qubic_lab.model.embeddings import Embedder

MODULE = "qubic_lab.model.embedding_worker"


def main() -> None:
    """Answer until the input ends."""
    embedder = Embedder()
    failure = ""
    try:
        embedder.load()
    except QubicLabError as error:
        failure = str(error)

    def answer(texts: Any) -> dict[str, Any]:
        """Return the vectors as one base64 text of little-endian floats, with each text's tokens and if it was cut."""
        if failure:
            return {"failure": failure}
        embedded = embedder.embed(texts)
        vectors = base64.b64encode(embedded.vectors_ND.astype("<f4").tobytes()).decode()
        return {"vectors": vectors, "tokens": embedder.count_tokens(texts), "cut": list(embedded.cut)}

    answer_lines(answer)


if __name__ == "__main__":
    main()
