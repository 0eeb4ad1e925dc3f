# SPDX-License-Identifier: Apache-2.0
"""Runs that stop when the model no longer gets better."""

from transformers import EarlyStoppingCallback


class ResumableEarlyStopping(EarlyStoppingCallback):
    """
    [`~transformers.EarlyStoppingCallback`] that goes on counting where a checkpoint left off. A run that it has stopped
    takes no further step when it is resumed.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = self.saved_count(state) if state.global_step else 0
        # `Trainer` expects it there when it saves, also after a checkpoint of a run without early stopping
        state.stateful_callbacks[type(self).__name__] = self.state()
        if self.has_stopped(state):
            control.should_training_stop = True

    def saved_count(self, state) -> int:
        """Return how many evaluations in a row were no better, by the state of a run."""
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)

    def has_stopped(self, state) -> bool:
        """Whether a run in this state has come to its end."""
        return self.saved_count(state) >= self.early_stopping_patience
