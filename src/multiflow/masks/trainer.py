"""`KeepSparse`: `keep_sparse` as a callback of ``transformers.Trainer``.

It is imported when it is asked for, and with it transformers, which nothing else in this package needs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from multiflow.base.errors import MultiflowError
from multiflow.masks.keep import keep_sparse
from multiflow.masks.masks import Masks


class KeepSparse(TrainerCallback):
    """Keep dropped weights at zero while a Trainer trains; checked at every evaluation, before a save and at the end.

    Args:
        masks: those of the Trainer's model, which may be wrapped by peft.

    Raises:
        MultiflowError: in the middle of the training, if a dropped weight is not 0.0.

    >>> Trainer(model, arguments, train_dataset=data, callbacks=[mf.KeepSparse(masks)]).train()    # doctest: +SKIP
    """

    def __init__(self, masks: Masks) -> None:
        if not isinstance(masks, Masks):
            raise MultiflowError(
                f"KeepSparse got a {type(masks).__name__}; expected mf.Masks, such as result.masks[0.75]"
            )
        self.masks = masks
        self._block = ExitStack()
        self._check: Callable[[], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to keep the zeros."""
        self._block.close()  # of a training that failed before its end
        self._check = self._block.enter_context(keep_sparse(given["model"], self.masks, given.get("optimizer")))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check the zeros before a save that follows."""
        if control.should_save:
            self._look()

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check the zeros."""
        self._look()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check the zeros for the last time, and let the model go."""
        try:
            self._look()
        finally:
            self._check = None
            self._block.close()

    def _look(self) -> None:
        if self._check is not None:
            self._check()
