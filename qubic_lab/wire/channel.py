"""Settings of every gRPC channel and server, and how the project's errors travel over them."""

import grpc

from qubic_lab.errors import InputError, ModelError, NonFiniteError, QubicLabError, RankError

_MOST_BYTES = 64 * 2**20
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # without it a second server binds a used port without a word
    ("grpc.max_receive_message_length", _MOST_BYTES),
)
CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.max_receive_message_length", _MOST_BYTES),)

_STATUS_OF_ERROR: dict[type[QubicLabError], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    NonFiniteError: grpc.StatusCode.DATA_LOSS,
    RankError: grpc.StatusCode.ABORTED,
}
_ERROR_OF_STATUS = {status: error for error, status in _STATUS_OF_ERROR.items()}


def status_of(error: QubicLabError) -> grpc.StatusCode:
    """Return the status that carries an error; its message travels as the details."""
    return next((s for kind, s in _STATUS_OF_ERROR.items() if type(error) is kind), grpc.StatusCode.INTERNAL)


def error_of(error: grpc.RpcError) -> QubicLabError:
    """Return the project's error for a failed call, with the server's message."""
    return _ERROR_OF_STATUS.get(error.code(), QubicLabError)(error.details())
