"""English sentences of a small grammar with their German translations, for runs without a text from elsewhere.

  the old dog can see a white cat now.          jetzt kann der alte Hund eine weiße Katze sehen.
  a cow finds the fox, because the fox hears the bird.      eine Kuh findet den Fuchs, weil der Fuchs den Vogel hört.

Three rules of German make the translation more than a lookup of words. An adverb moves to the front, and then the verb
precedes the subject. Infinitives, and verbs after "weil", go to the end. Articles and adjectives agree in gender and
case, so that a phrase differs as subject and as object.

Test sentences come in pairs whose main subject and object are swapped. Both sentences of a pair have the same tokens.
A model that sees only the set of tokens therefore translates at most half of the test set correctly.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from models.errors import UserError, choice_error
from train.data.shuffle import philox

LANGUAGES = ("en", "de")
SIZES = {"train": 4000, "test": 200}
_SEED = 0  # the text does not depend on the seed of a run
_NOUNS = {
    "man": ("m", "Mann"),
    "dog": ("m", "Hund"),
    "bird": ("m", "Vogel"),
    "fox": ("m", "Fuchs"),
    "woman": ("f", "Frau"),
    "cat": ("f", "Katze"),
    "cow": ("f", "Kuh"),
    "mouse": ("f", "Maus"),
    "child": ("n", "Kind"),
    "horse": ("n", "Pferd"),
    "sheep": ("n", "Schaf"),
    "pig": ("n", "Schwein"),
}
_ADJECTIVES = {
    "old": "alt",
    "young": "jung",
    "small": "klein",
    "big": "groß",
    "white": "weiß",
    "black": "schwarz",
    "brown": "braun",
    "strong": "stark",
}
_VERBS = {
    "see": ("sieht", "sehen"),
    "hear": ("hört", "hören"),
    "find": ("findet", "finden"),
    "love": ("liebt", "lieben"),
    "chase": ("jagt", "jagen"),
    "carry": ("trägt", "tragen"),
    "greet": ("grüßt", "grüßen"),
    "call": ("ruft", "rufen"),
    "know": ("kennt", "kennen"),
}
_THIRD = {"carry": "carries"}  # third person; other verbs add an s
_MODALS = {"can": "kann", "must": "muss", "may": "darf", "will": "wird"}
_ADVERBS = {"today": "heute", "tomorrow": "morgen", "now": "jetzt", "often": "oft", "here": "hier"}
# By (article, case) and gender: the German article, and the ending of an adjective after it
_AGREEMENT = {
    ("the", "subject"): {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
    ("the", "object"): {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e")},
    ("a", "subject"): {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    ("a", "object"): {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
}


class Phrase(NamedTuple):
    """A noun phrase; `adjective` may be ""."""

    article: str
    adjective: str
    noun: str

    def english(self) -> str:
        words = " ".join(filter(None, self[1:]))
        return f"an {words}" if self.article == "a" and words[0] in "aeiou" else f"{self.article} {words}"

    def german(self, case: str) -> str:
        gender, noun = _NOUNS[self.noun]
        article, ending = _AGREEMENT[self.article, case][gender]
        adjective = _ADJECTIVES[self.adjective] + ending if self.adjective else ""
        return " ".join(filter(None, (article, adjective, noun)))


class Clause(NamedTuple):
    """A clause; `modal` and `adverb` may be ""."""

    subject: Phrase
    modal: str
    verb: str
    object: Phrase
    adverb: str = ""

    def english(self) -> str:
        verb = f"{self.modal} {self.verb}" if self.modal else _THIRD.get(self.verb, f"{self.verb}s")
        return " ".join(filter(None, (self.subject.english(), verb, self.object.english(), self.adverb)))

    def german(self, subordinate: bool = False) -> str:
        subject, thing = self.subject.german("subject"), self.object.german("object")
        third, infinitive = _VERBS[self.verb]
        finite, last = (_MODALS[self.modal], infinitive) if self.modal else (third, "")
        if subordinate:
            words = (subject, thing, last, finite)
        elif self.adverb:
            words = (_ADVERBS[self.adverb], finite, subject, thing, last)
        else:
            words = (subject, finite, thing, last)
        return " ".join(filter(None, words))


class Sentence(NamedTuple):
    """A main clause and, unless None, a clause with the reason."""

    main: Clause
    why: Clause | None

    def english(self) -> str:
        return self.main.english() + (f", because {self.why.english()}" if self.why else "") + "."

    def german(self) -> str:
        return self.main.german() + (f", weil {self.why.german(subordinate=True)}" if self.why else "") + "."

    def swapped(self) -> "Sentence":
        """Returns the sentence with subject and object of the main clause swapped."""
        return self._replace(main=self.main._replace(subject=self.main.object, object=self.main.subject))


def sentences(languages: Sequence[str], split: str) -> list[list[str]]:
    """Returns the sentences of a split, one list for each language; no test sentence is a training sentence.

    Raises:
      UserError: there is no such split or language.
    """
    if split not in SIZES:
        raise choice_error("split of grammar", split, SIZES)
    if not set(languages) <= set(LANGUAGES):
        raise UserError(f"data.source=grammar: its languages are {', '.join(LANGUAGES)}, not {', '.join(languages)}")
    test, rng = {}, philox(_SEED, 0, stream=0)
    while len(test) < SIZES["test"]:
        one = _draw(rng)
        if one.main.subject != one.main.object and one not in test:
            test |= {one: None, one.swapped(): None}
    train, rng = [], philox(_SEED, 1, stream=0)
    while split == "train" and len(train) < SIZES["train"]:
        one = _draw(rng)
        train += [one] if one not in test else []
    return [
        [getattr(one, {"en": "english", "de": "german"}[language])() for one in (train or test)]
        for language in languages
    ]


def _draw(rng: np.random.Generator) -> Sentence:
    def choose(words: Iterable[str], share: float = 1.0) -> str:
        choices = list(words)
        return choices[rng.integers(len(choices))] if rng.random() < share else ""

    def phrase() -> Phrase:
        return Phrase(choose(("the", "a")), choose(_ADJECTIVES, 0.5), choose(_NOUNS))

    def clause(adverb: float) -> Clause:
        return Clause(phrase(), choose(_MODALS, 0.5), choose(_VERBS), phrase(), choose(_ADVERBS, adverb))

    return Sentence(clause(0.5), clause(0.0) if rng.random() < 0.3 else None)
