"""The codec between ranks loses nothing."""

from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.core import MAX_SEED
from qubic_lab.pipeline.message import HEADER_WORDS, MAX_SLOTS, NO_FAULT, Kind, Message, Work, decode, encode

small = st.integers(-1, 2**40)
works = st.builds(
    Work,
    slot=small,
    request=small,
    position=small,
    rows=small,
    sample=small,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1),
    top_k=small,
    seed=st.integers(0, MAX_SEED),
    token=small,
    fault=small,
    logprobs=small,
    prompt_logprobs=small,
    min_p=st.floats(0, 1),
)
messages = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    sequence=small,
    lane=small,
    count=small,
    works=st.lists(works, max_size=MAX_SLOTS).map(tuple),
    packed=small,
    adjustments=small,
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    header = encode(message)
    assert header.shape == (HEADER_WORDS,)
    assert decode(header) == message


def test_the_first_rank_that_sees_a_fault_keeps_its_name() -> None:
    message = Message(Kind.DECODE, 0, works=(Work(0, 0, 0), Work(1, 1, 0)))
    later = message.with_fault(1, {0}).with_fault(2, {0, 1})
    assert [work.fault for work in message.works] == [NO_FAULT, NO_FAULT]
    assert [work.fault for work in later.works] == [1, 2]
