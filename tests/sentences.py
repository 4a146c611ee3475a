"""A parallel text and runs on it, small enough for tests."""

from configs import translation
from tests import tiny

PAIRS = (
    ("A man is sleeping.", "Ein Mann schläft."), ("Two dogs run.", "Zwei Hunde rennen."),
    ("A woman reads a book.", "Eine Frau liest ein Buch."), ("The child is playing.", "Das Kind spielt."),
    ("A dog is in the snow.", "Ein Hund ist im Schnee."), ("Two men play guitar.", "Zwei Männer spielen Gitarre."),
    ("A girl eats an apple.", "Ein Mädchen isst einen Apfel."), ("The street is empty.", "Die Straße ist leer."),
    ("A boy climbs a tree.", "Ein Junge klettert auf einen Baum."), ("A cat sees a bird.", "Eine Katze sieht ihn."),
    ("Children play in the park.", "Kinder spielen im Park."), ("A man rides a bike.", "Ein Mann fährt Fahrrad."),
)  # fmt: skip


def write(folder):
    """Writes the pairs as train.en, train.de, test.en and test.de."""
    for split in ("train", "test"):
        for language, lines in zip(("en", "de"), zip(*PAIRS, strict=True), strict=True):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n")


def config(source, **changes):
    """Returns configs/translation.py with a network of one narrow block on one device; "section__key" changes a key."""
    c = translation.get_config()
    c.model.width, c.model.heads, c.model.layers, c.model.ff_width = 32, 2, 1, 64
    c.data.source, c.batch_size, c.eval_batch_size, c.devices, c.hooks = source, 12, 8, 1, ""
    c.log_every, c.evaluate_every, c.checkpoint_every = "20 steps", "100%", "100%"
    return tiny.change(c, **changes)
