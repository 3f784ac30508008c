"""The tokenizer gives any text back and is the same every time; packing loses exactly the tokens that it counts."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from align.data import encode, pack, train_tokenizer
from align.errors import UserError

TEXTS = [
    f"the cat sat on the {thing}, and the {thing} held. \u00c4pfel {i}"
    for i, thing in enumerate(["mat", "hat", "bed"] * 9)
]
ODD = [
    "",
    " ",
    "  two  spaces\t\n\r\n",
    "na\u00efve \u4f60\u597d \U0001f468\u200d\U0001f469",
    "\u2028\x85\x00\x7f",
    "a<|end|>b",
    "' s don't",
]


def test_any_text_comes_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, vocab_size=300, out=tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 1)
    assert 258 < len(tokenizer) <= 300
    generator = random.Random(0)
    points = [p for p in range(0x20, 0x3FFFF, 97) if not 0xD800 <= p < 0xE000]
    texts = [*ODD, *("".join(map(chr, generator.choices(points, k=40))) for _ in range(20))]
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert saved(text)["input_ids"] == ids == saved(text, add_special_tokens=False)["input_ids"]
        assert saved.decode(ids) == text
    assert len(tokenizer("the cat sat")["input_ids"]) < 11  # it learned something
    assert tokenizer("a<|end|>")["input_ids"][-1] == 1


def test_training_is_deterministic_across_processes_and_orders(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[3]); from align.data import train_tokenizer\n"
        "texts = open(sys.argv[1]).read().split('\\n'); train_tokenizer(texts, vocab_size=400, out=sys.argv[2])"
    )
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    root = str(Path(__file__).resolve().parents[3])
    subprocess.run([sys.executable, "-c", program, tmp_path / "texts", tmp_path / "a", root], check=True)
    train_tokenizer(TEXTS[::-1], vocab_size=400, out=tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_bad_sizes_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size=257: give at least 258"):
        train_tokenizer(TEXTS, vocab_size=257, out=tmp_path)
    with pytest.raises(UserError, match="no text to learn from"):
        train_tokenizer(["", ""], vocab_size=300, out=tmp_path)


def test_packing_by_hand(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["zz"], vocab_size=258, out=tmp_path, min_frequency=9)
    a, b, c = encode(["a", "b", "c"], tokenizer)
    (a, b, c), end = (a[0], b[0], c[0]), 1
    counts: Counter[str] = Counter()
    blocks = pack(["ab", "c", "abc"], tokenizer, length=4, counts=counts)
    assert blocks.column_names == ["input_ids"]
    assert blocks["input_ids"][:] == [[a, b, end, c], [end, a, b, c]]
    assert counts == {"documents": 3, "tokens": 9, "blocks": 2, "tail tokens dropped": 1}
    counts = Counter()
    assert pack(["ab", "c", "abc"], tokenizer, length=4, tail="keep", counts=counts)["input_ids"][:][2] == [end]
    assert counts == {"documents": 3, "tokens": 9, "blocks": 3, "tail tokens kept": 1}
    with pytest.raises(UserError, match="2 tokens do not fill one block of 4"):
        pack(["a"], tokenizer, length=4)
    with pytest.raises(UserError, match="at least 2"):
        pack(["a"], tokenizer, length=1)
