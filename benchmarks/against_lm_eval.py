"""The evaluation sets of a folded run by EleutherAI's lm-evaluation-harness, beside ours.

    pip install 'lm-eval[hf]'
    wesar-sweep fold results/STUDY --to FOLDER
    python benchmarks/against_lm_eval.py results/STUDY FOLDER

Loads FOLDER with transformers and asks the harness for the log-likelihoods, by its own tokenising,
windows, detokeniser and counts; of ours it takes nothing but the texts. Prints both figures of each
set of the kinds wikitext and lambada that is judged with the default stride, and how they differ.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from wesar_sweep.config import load_study
from wesar_sweep.config.evaluation import LambadaSet, WikitextSet
from wesar_sweep.data.set_texts import documents_of_set
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="the results directory")
    parser.add_argument("folder", type=Path, help="what `wesar-sweep fold` wrote of its best run")
    arguments = parser.parse_args()

    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    directory = StudyDirectory(arguments.study)
    study = load_study(directory.study_file)
    completed = [row for row in read_outcomes(directory) if row.status == "completed"]
    ours = min(completed, key=lambda row: row.val_loss).evaluations
    model = HFLM(
        pretrained=str(arguments.folder),
        max_length=study.model.context,
        dtype="float32",
        device="cuda" if torch.cuda.is_available() else "cpu",
    )

    def ask(kind: str, requests: list[tuple[str, ...]]) -> list:
        instances = [
            Instance(request_type=kind, doc={}, arguments=one, idx=n)
            for n, one in enumerate(requests)
        ]
        return getattr(model, kind)(instances, disable_tqdm=True)

    print(f"{'set':12}{'figure':12}{'harness':>14}{'ours':>14}{'ratio - 1':>12}")
    for name, found in study.evaluation.sets.items():
        texts = [text.decode() for text in documents_of_set(found, key=name)]
        theirs = {}
        if isinstance(found, WikitextSet) and found.stride is None:
            docs = [{"page": text} for text in texts]
            asked = [(wikitext_detokenizer(doc),) for doc in docs]
            sums = ask("loglikelihood_rolling", asked)
            counted = [process_results(doc, [s]) for doc, s in zip(docs, sums, strict=True)]

            def pooled(metric: str, counted: list = counted) -> float:
                pairs = [one[metric] for one in counted]
                return sum(p[0] for p in pairs) / sum(p[1] for p in pairs)

            theirs["word_ppl"] = math.exp(-pooled("word_perplexity"))
            theirs["bpb"] = -pooled("bits_per_byte") / math.log(2)
        elif isinstance(found, LambadaSet):
            cut = [text.rsplit(" ", 1) for text in texts]
            answers = ask("loglikelihood", [(before, " " + last) for before, last in cut])
            theirs["ppl"] = math.exp(-sum(s for s, _ in answers) / len(answers))
            theirs["accuracy"] = sum(greedy for _, greedy in answers) / len(answers)
        for figure, value in theirs.items():
            own = math.exp(ours[name]["loss"]) if figure == "ppl" else ours[name][figure]
            off = own / value - 1 if value else own
            print(f"{name:12}{figure:12}{value:14.6f}{own:14.6f}{off:12.2e}")


if __name__ == "__main__":
    main()
