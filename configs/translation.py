"""English to German by a Transformer (Vaswani 2017, arXiv 1706.03762).

    python -m train --config=configs/translation.py --workdir=runs/grammar
    python -m train --config=configs/translation.py:folder=/data/multi30k --workdir=runs/multi30k

grammar  sentences of a small grammar, generated on the fly (train/data/sources/grammar.py); size=toy, a minute on a CPU
FOLDER   a folder with train.en, train.de, test_2016_flickr.en, … (or .gz), one sentence per line, as in Multi30k task 1
         (Elliott 2016, arXiv 1605.00459); size=small. For other names of files, set source=, target=, test=

Section 5 of the paper: Adam with b1 0.9, b2 0.98, eps 1e-9 and a learning rate of (width x warmup)^-0.5 at the end of
a linear warm-up, then falling as step^-0.5; label smoothing 0.1; beam search with 4 beams and alpha 0.6. A batch is a
fixed number of sentence pairs of similar length. Smaller texts get more dropout.
Published: WMT 2014 En-De newstest2014 27.3 BLEU (base), 28.4 (big), table 2. Multi30k En-De test2016: 38.4 BLEU by a
Transformer of 16.1M parameters (Lin 2020, arXiv 2009.02016). That is tokenized BLEU; ours is of the raw text, by
sacreBLEU.
Cost: `small` on Multi30k is 60 epochs of 29,000 pairs: minutes on a GPU, hours on a CPU.
"""

from ml_collections import ConfigDict

from configs.base import arguments, base

SIZES = {  # fields of the model, and: warm-up steps, epochs, sentence pairs per batch, size of the vocabulary
    "toy": dict(width=64, heads=8, layers=2, ff_width=128, dropout=0.1, warmup=200, epochs=8, batch=64, tokens=512),
    "tiny": dict(
        width=128, heads=4, layers=4, ff_width=256, dropout=0.3, warmup=2000, epochs=60, batch=256, tokens=8000
    ),
    "small": dict(
        width=256, heads=8, layers=3, ff_width=1024, dropout=0.3, warmup=2000, epochs=60, batch=256, tokens=8000
    ),
    "base": dict(
        width=512, heads=8, layers=6, ff_width=2048, dropout=0.1, warmup=4000, epochs=20, batch=1024, tokens=37_000
    ),
}


def get_config(text: str = ""):
    """Takes the arguments folder (or "grammar"), size (a key of SIZES), source, target, test, epochs, seed."""
    a = arguments(text, folder="grammar", size="", source="en", target="de", test="", epochs=0, seed=0)
    generated = a.folder == "grammar"
    a.size = a.size or ("toy" if generated else "small")
    if a.size not in SIZES:
        raise ValueError(f"unknown size '{a.size}'; allowed: {', '.join(SIZES)}")
    size = dict(SIZES[a.size])
    c = base()
    c.seed = a.seed
    warmup, epochs, c.batch_size, tokens = (size.pop(key) for key in ("warmup", "epochs", "batch", "tokens"))
    c.eval_batch_size = 200
    c.duration = f"{a.epochs or epochs} epochs"
    c.log_every = "100 steps"
    c.hooks = "bleu(4)|figures"
    c.task.name = "translate"
    c.task.label_smoothing = 0.1
    c.model = ConfigDict({"name": "transformer_base", **size})
    c.optimizer.name = "adam(b1=0.9, b2=0.98, eps=1e-9)"
    c.optimizer.learning_rate = (size["width"] * warmup) ** -0.5  # section 5.3, eq. 3
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.warmup = f"{warmup} steps"
    # The other keys of this section are for images
    c.data = ConfigDict({"source": a.folder if generated else f"text:{a.folder}"})
    c.text = ConfigDict()
    c.text.source = a.source  # language, which is the ending of the file names
    c.text.target = a.target
    c.text.train_split = "train"
    c.text.test_split = a.test or ("test" if generated else "test_2016_flickr")
    # Upper limit for both languages together, with the tokens for padding, beginning and end
    c.text.vocab_size = tokens
    # Lengths in tokens: a batch is padded to the first that holds it. Each length has its own compiled program. Longer
    # pairs are skipped in training
    c.text.buckets = (12, 28) if generated else (16, 24, 32, 48, 64)
    return c
