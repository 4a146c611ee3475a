"""Writes train/data/imagenet.csv from timm's lists of ImageNet's classes; needs timm, not PyTorch.

  PYTHONPATH=. ../venv-timm/bin/python -m tests.golden.make_imagenet_words

Words come from torchvision by way of make_tags.py. That they stand in the order of timm's ids is compared with the
lemmas of WordNet, which timm has, too.
"""

import csv
import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
AGREE = 850  # classes whose name of torchvision's is one of WordNet's lemmas; it changed the others


def lines(name: str) -> list[str]:
    spec = importlib.util.find_spec("timm")
    return (pathlib.Path(spec.origin).parent / "data" / "_info" / name).read_text().splitlines()


def main() -> None:
    wnids = lines("imagenet_synsets.txt")
    lemmas = dict(line.split("\t", 1) for line in lines("imagenet_synset_to_lemma.txt"))
    words = (ROOT / "models" / "weights" / "imagenet1k.txt").read_text().splitlines()
    assert wnids == sorted(wnids) and len(set(wnids)) == len(words) == 1000
    alike = [word.lower() in lemmas[wnid].lower() for wnid, word in zip(wnids, words, strict=True)]
    assert sum(alike) >= AGREE, sum(alike)
    sets = {letter: set(lines(f"imagenet_{letter}_synsets.txt")) for letter in "ar"}
    assert all(len(ids) == 200 and ids <= set(wnids) for ids in sets.values())
    with (ROOT / "train" / "data" / "imagenet.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wnid", "sets"])
        writer.writerows([wnid, "".join(letter for letter in "ar" if wnid in sets[letter])] for wnid in wnids)


if __name__ == "__main__":
    main()
