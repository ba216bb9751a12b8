"""The errors a user can cause and mend. Each message says what failed, with which value, and what to do."""

from __future__ import annotations


class PeftRagError(Exception):
    """Base of every error that the user can mend; the command line prints it on one line and exits with 2."""


class ConfigError(PeftRagError):
    """An option is unknown, of the wrong type, or contradicts another."""


class PluginError(PeftRagError):
    """A plugin is unknown, claimed twice, or broken."""


class UnknownPluginError(PluginError):
    """No plugin of that name is installed."""


class UnknownMethodError(UnknownPluginError):
    """No PEFT method of that name is installed."""


class UnknownFusionError(UnknownPluginError):
    """No fusion of that name is installed."""


class UnknownTaskError(UnknownPluginError):
    """No task of that name is installed."""


class UnknownRetrieverError(UnknownPluginError):
    """No retriever of that name is installed."""


class UnknownObjectiveError(UnknownPluginError):
    """No objective of that name is installed."""


class DuplicatePluginError(PluginError):
    """Two distributions claim one name."""


class BrokenPluginError(PluginError):
    """A plugin is installed but cannot be loaded."""


class DataError(PeftRagError):
    """A record cannot be used; the message names file, line and field."""


class CorpusError(DataError):
    """A document of a corpus cannot be used, or the corpus as a whole cannot."""


class BackboneError(PeftRagError):
    """A backbone or encoder cannot be found or loaded."""


class MethodError(PeftRagError):
    """A PEFT method cannot be attached to this backbone, or cannot do what was asked of it."""


class RetrievalError(PeftRagError):
    """An index cannot be built, read or searched."""


class TrainingError(PeftRagError):
    """Training cannot start, or diverged."""


class DivergedError(TrainingError):
    """A loss became infinite or no number at all."""


class ArtefactError(PeftRagError):
    """An artefact cannot be written or read."""


class FingerprintError(ArtefactError):
    """An artefact does not belong to this backbone, encoder or corpus."""


class ShapeError(PeftRagError, ValueError):
    """Tensors disagree about a dimension."""


class ConformanceError(AssertionError):
    """A plugin breaks the contract of its plug-in point; raised by the kits in `peft_rag.testing`."""
