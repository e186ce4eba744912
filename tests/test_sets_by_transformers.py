"""A folded run judged by Hugging Face's transformers gives the figures that its study gives.

Nothing of ours is used but the files: the text is split, encoded, cut into windows and scored here
again, in the plainest way, by the tokenizer and the model in the folder.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import wesar_sweep as ws
from wesar_sweep.config import parse_study
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.export_model import fold_run

CONTEXT, STRIDE = 24, 10
WIKI = """ = Harbour lights = \n
 A harbour light ( or leading light ) shows the way in , at 1 @.@ 5 miles , as <unk> wrote . \n
 = = Use = = \n
 Ships follow it ; it 's a well @-@ known sign of the port , and has been for 1 @,@ 000 years . \n
 = Low tides = \n
 At a low tide the water 's edge is far out " and dry " . \n
"""
PASSAGES = [
    "she lit the lamp because it was dark",
    "the ship came in with the tide",
    "one lamp for each ship and one ship for each tide , said she , and lit the lamps of the port",
]


@pytest.fixture(scope="module", params=["gelu", "swiglu"])
def folded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, float]]]:
    """A folder of transformers, and what the study says of the run in it."""
    folder = tmp_path_factory.mktemp(request.param)
    lines = (f"the ship {n} lit {n * 7 % 11} lamps on tide {n % 5} of the port" for n in range(300))
    (folder / "train.txt").write_text("\n".join(lines))
    (folder / "wiki.txt").write_text(WIKI)
    (folder / "lambada.txt").write_text("\n".join(PASSAGES))
    sets: dict[str, Any] = {
        "wiki": {"kind": "wikitext", "paths": [str(folder / "wiki.txt")]},
        "strided": {
            "kind": "text", "paths": [str(folder / "wiki.txt")], "stride": STRIDE,
        },
        "last": {"kind": "lambada", "paths": [str(folder / "lambada.txt")]},
    }  # fmt: skip
    study = parse_study(
        {
            "space": {"lr": [1e-3]},
            "replicates": 1,
            "method": "wesar",
            "model": {
                "width": 16, "depth": 2, "heads": 2, "context": CONTEXT, "ffn": request.param,
            },
            "training": {"steps": 30, "batch": 8, "warmup": 4},
            "keep_weights": True,
            "data": {
                "source": "text", "paths": [str(folder / "train.txt")], "documents": "line",
                "tokenizer": {"kind": "bpe", "vocabulary": 300},
            },
            "evaluation": {"sequences": 4, "sets": sets},
        },
        name="judged",
    )  # fmt: skip
    result = ws.run(study, out=folder / "out")
    (row,) = result.outcomes.rows(named=True)
    # Bits a byte are of the very windows that the loss is of.
    corpus = load_corpus(study.data, context=CONTEXT)
    last = len(corpus.validation) - CONTEXT - 1
    first_S = np.linspace(0, last, 4).astype(np.int64)
    target_ST = corpus.validation[first_S[:, None] + np.arange(1, CONTEXT + 1)]
    assert corpus.tokenizer is not None
    size = len(corpus.tokenizer.decode(target_ST.flatten()).replace("<|endoftext|>", "\n").encode())
    assert row["val_bpb"] == pytest.approx(
        row["val_loss"] * target_ST.size / size / math.log(2), rel=1e-6
    )
    figures: dict[str, dict[str, float]] = {name: {} for name in sets}
    for column, value in row.items():
        if column.startswith("eval_"):
            name, _, figure = column.removeprefix("eval_").partition(".")
            figures[name][figure or "loss"] = value
    fold_run(folder / "out", to=folder / "model")
    return folder / "model", figures


@pytest.fixture(scope="module")
def loaded(folded: tuple[Path, Any]) -> tuple[ModuleType, Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folded[0]).eval()
        return transformers, model, transformers.AutoTokenizer.from_pretrained(folded[0])


@torch.no_grad()
def log_likelihoods(model: Any, ids: list[int], scored: int) -> tuple[float, bool]:
    """Of the last `scored` of some ids given those before them; and whether each is the likeliest.

    No window is longer than the context: at most that many ids are read, the last is not.
    """
    window = ids[-(CONTEXT + 1) :]
    logits = model(torch.tensor([window[:-1]])).logits[0, -scored:].double()
    wanted = torch.tensor(window[-scored:])
    found = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])
    return float(found.sum()), bool((logits.argmax(dim=-1) == wanted).all())


def rolling(model: Any, ids: list[int], *, first: int, stride: int) -> float:
    """Log-likelihood of a whole text: the first window is full, the next take `stride` new ids."""
    text = [first, *ids]
    total, done = 0.0, 0
    while done < len(ids):
        new = min(CONTEXT if done == 0 else stride, len(ids) - done)
        done += new
        total += log_likelihoods(model, text[: done + 1], new)[0]
    return total


def articles() -> list[str]:
    first, second = WIKI.split("\n = Low")
    return [first, " = Low" + second]


def as_people_write(page: str) -> str:
    """Enough of the harness's rules for these two articles, in another order and by other means."""
    page = page.replace(" @.@ ", ".").replace(" @-@ ", "-").replace(" @,@ ", ",")
    page = re.sub(r" ([.,;]) ", r"\1 ", page)
    page = re.sub(r"\( (.*?) \)", r"(\1)", page)
    page = re.sub(r'" (.*?) "', r'"\1"', page)
    page = page.replace(" 's", "'s").replace("= =", "==")
    return page.replace(" \n", "\n").replace("\n ", "\n")


def test_wikitext(folded: Any, loaded: Any) -> None:
    ours = folded[1]["wiki"]
    _, model, tokenizer = loaded
    total = tokens = 0.0
    for page in articles():
        ids = tokenizer(as_people_write(page), add_special_tokens=False)["input_ids"]
        total += rolling(model, ids, first=tokenizer.eos_token_id, stride=CONTEXT)
        tokens += len(ids)
    words = sum(len(re.split(r"\s+", page)) for page in articles())
    size = sum(len(page.encode()) for page in articles())
    assert ours["loss"] == pytest.approx(-total / tokens, rel=1e-5)
    assert ours["word_ppl"] == pytest.approx(math.exp(-total / words), rel=1e-3)
    assert ours["bpb"] == pytest.approx(-total / size / math.log(2), rel=1e-5)


def test_a_text_with_a_stride(folded: Any, loaded: Any) -> None:
    _, model, tokenizer = loaded
    ids = tokenizer(WIKI, add_special_tokens=False)["input_ids"]
    total = rolling(model, ids, first=tokenizer.eos_token_id, stride=STRIDE)
    ours = folded[1]["strided"]
    assert ours["loss"] == pytest.approx(-total / len(ids), rel=1e-5)
    assert ours["bpb"] == pytest.approx(-total / len(WIKI.encode()) / math.log(2), rel=1e-5)
    # The control: other windows give another figure.
    other = rolling(model, ids, first=tokenizer.eos_token_id, stride=CONTEXT)
    assert abs(other / total - 1) > 1e-4


def test_lambada(folded: Any, loaded: Any) -> None:
    _, model, tokenizer = loaded
    answers = []
    for passage in PASSAGES:
        before, last = passage.rsplit(" ", 1)
        whole = tokenizer(passage, add_special_tokens=False)["input_ids"]
        given = tokenizer(before, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(whole[len(given) :]) == " " + last
        answers.append(log_likelihoods(model, whole, len(whole) - len(given)))
    ours = folded[1]["last"]
    assert ours["loss"] == pytest.approx(-sum(s for s, _ in answers) / len(answers), rel=1e-5)
    assert ours["accuracy"] == sum(greedy for _, greedy in answers) / len(answers)
