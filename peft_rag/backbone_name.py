"""How a backbone is named: where it lies, and before that, how it is to be loaded."""

from __future__ import annotations

from dataclasses import dataclass

from peft_rag.errors import ConfigError

BITS = ("4bit", "8bit")
_WARM = "warm"


@dataclass(frozen=True)
class BackboneName:
    """A hub name or folder, and how it is loaded; written as one word, so that an artefact loads its backbone again.

    >>> str(BackboneName.parse("4bit:gpt2")), BackboneName.parse("warm:bert-base-cased").warm
    ('4bit:gpt2', True)

    Attributes:
        place: hub name, folder, or the name of a model that an installed package ships.
        warm: an encoder-decoder whose both halves start as this encoder (``warm:``).
        load_in: ``4bit`` or ``8bit``, or empty for weights as they are.
    """

    place: str
    warm: bool = False
    load_in: str = ""

    def __post_init__(self) -> None:
        """Check that what is asked for goes together.

        Raises:
            ConfigError: it does not.
        """
        if self.load_in not in ("", *BITS):
            raise ConfigError(f"load_in is '{self.load_in}'. Choose {' or '.join(BITS)}, or leave it out.")
        if self.warm and self.load_in:
            raise ConfigError(
                f"'{self.place}' cannot start an encoder-decoder in {self.load_in}: its new cross-attention must be "
                "trained. Leave load_in out."
            )

    @classmethod
    def parse(cls, name: str, *, warm: bool = False, load_in: str = "") -> BackboneName:
        """Read a name with its prefixes, ``warm:``, ``4bit:`` or ``8bit:``, and add to it what is given beside it.

        Raises:
            ConfigError: the name says one number of bits and ``load_in`` another, or they do not go with ``warm``.
        """
        prefix, found, rest = name.partition(":")
        if found and prefix == _WARM:
            return cls.parse(rest, warm=True, load_in=load_in)
        if found and prefix in BITS:
            if load_in not in ("", prefix):
                raise ConfigError(f"backbone '{name}' says {prefix}, but load_in says {load_in}. Keep one.")
            return cls.parse(rest, warm=warm, load_in=prefix)
        return cls(name, warm, load_in)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return ":".join([*([self.load_in] if self.load_in else []), *([_WARM] if self.warm else []), self.place])
