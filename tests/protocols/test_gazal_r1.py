"""The protocol `gazal-r1`: replies in the form of its model card are read, and only those that answer.

pytest tests/protocols/test_gazal_r1.py
"""

from __future__ import annotations

import pytest

from medbench.harness.extraction.published import EXTRACTORS
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.scoring.score import score_reply

OPTIONS = ("Lupus nephritis", "IgA nephropathy", "Poststreptococcal glomerulonephritis", "Alport syndrome")
THOUGHT = (
    "<think>\nStep 1: Dark urine two days after a sore throat is a short delay, which rather excludes C.\n"
    "Step 2: Complement is normal, so A is unlikely.\nStep 3: No hearing loss, hence not D.\n</think>\n\n"
)
SECTIONS = (
    "## Clinical Assessment\n**Primary Diagnosis**: IgA nephropathy\n\n## Plan\n1. Biopsy\n2. Watch creatinine\n\n"
)
YES_NO = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (f"{THOUGHT}{SECTIONS}## Final Answer\nB", "B"),
        (f"{THOUGHT}{SECTIONS}## Final Answer\n**B**", "B"),
        (f"{THOUGHT}{SECTIONS}## Final Answer\n\nB. IgA nephropathy", "B"),
        (f"{THOUGHT}{SECTIONS}## Final Answer: (B)", "B"),
        (f"{THOUGHT}{SECTIONS}### **Final Answer**\n\n**B. IgA nephropathy**\n", "B"),
        (f"{THOUGHT}{SECTIONS}**Final Answer**: B\n", "B"),
        (f"{THOUGHT}{SECTIONS}## Final Answer\n\\boxed{{B}}", "B"),
        (f"{THOUGHT}{SECTIONS}## Conclusion\nThe correct answer is **B) IgA nephropathy**.", "B"),
        (THOUGHT.removeprefix("<think>\n") + f"{SECTIONS}## Final Answer\nB", "B"),  # the template opened the thought
        (f"{THOUGHT}{SECTIONS}", None),  # sections, and none that answers
        (f"{THOUGHT}{SECTIONS}## Final Answer\nB or C", None),
        ("<think>\nStep 1: The answer is B.\nStep 2: Let me check", None),  # cut off
    ],
)
def test_replies_in_the_form_of_the_card_are_read(reply: str, answer: str | None) -> None:
    found, _ = score_reply(reply, tuple("ABCD"), OPTIONS, "B", finish_reason="stop", opened=not reply.startswith("<"))
    assert found.answer == answer


@pytest.mark.parametrize("answer", YES_NO)
def test_decisions_are_read_too(answer: str) -> None:
    thought = "<think>\nStep 1: Yes, the groups are alike.\nStep 2: No harm was seen.\n</think>\n\n"
    text = f"{thought}## Evidence\nThe trial is small, maybe too small.\n\n## Final Answer\n**{answer.capitalize()}**"
    assert score_reply(text, YES_NO, YES_NO, answer, finish_reason="stop")[0].answer == answer


def test_it_is_sampled_and_read_by_medbenchs_reader() -> None:
    protocol = load_protocol("gazal-r1")
    assert protocol.is_sampled
    assert EXTRACTORS[protocol.extraction] is EXTRACTORS[load_protocol("cot-v2").extraction]
    assert any("reader" in quirk for quirk in protocol.quirks)
    assert load_protocol("gazal-r1", thinking_tokens=1024).cue == "\n\n## Final Answer\n"
