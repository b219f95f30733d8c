"""Going back: where a loss jumps, the run returns to its newest checkpoint, without the data since.

    step   4    5    6    7*        5'   6'   7'  ...      * the loss jumps; checkpoint at 4
    data   a    b    c    d         e    f    g            b, c and d are left out for good
                |<-- undone -->|

The jump itself is left out as under `watch.spikes=skip`, so that every backend ends the step as it
ends every other one. Then weights, moments, their average, the loss scale, the generators, the
recent losses and the number of steps are those of the checkpoint. The place in the data and the
counts of what went wrong are not: they go on.

Which step jumps follows from what a checkpoint holds, and so does where the run returns to as long
as the checkpoints are the same: a run that is killed after it went back, and before it saved again,
meets the same jump and goes the same way. The count of rollbacks is saved with the data state.
A checkpoint that was made because the job had to stop counts as well: a run with one of those
before the jump goes back less far than one that was never stopped.
"""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pipelines.engine.checkpoint import Checkpointer
from pipelines.engine.distributed import Group
from pipelines.engine.skipped import Tell
from pipelines.engine.spikes import SpikeWatch
from pipelines.engine.state import TrainState
from pipelines.errors import DivergenceError


class Rollbacks:
    """Takes a run back to its newest checkpoint, at most `max_total` times over all restarts.

    step: that this start goes on from. total: as its checkpoint has it. tell: writes an event, on
    the main rank.
    """

    def __init__(
        self, *, max_total: int, step: int = 0, total: int = 0, tell: Tell | None = None
    ) -> None:
        self.total = total
        self._max_total = max_total
        self._tell = tell
        self._keys: dict[int, Sequence[str]] = {}
        self._saved = deque([step], maxlen=2)

    def saw_step(self, step: int, keys: Sequence[str]) -> None:
        """Remember this rank's samples of a step, until it can no longer be undone."""
        self._keys[step] = keys

    def saw_save(self, step: int) -> None:
        """Forget what was before the checkpoint before this one."""
        self._saved.append(step)
        self._keys = {s: keys for s, keys in self._keys.items() if s > self._saved[0]}

    def find(self, checkpointer: Checkpointer) -> Path | None:
        """The newest complete checkpoint, the one on its way to the disk included."""
        checkpointer.finish()
        newest, complaints = checkpointer.newest()
        for complaint in complaints:
            if self._tell is not None:
                self._tell("damaged_checkpoint", {"message": complaint})
        return newest

    def go_back(
        self,
        state: TrainState,
        folder: Path,
        *,
        checkpointer: Checkpointer,
        spikes: SpikeWatch,
        group: Group,
    ) -> None:
        """Put `state` where it was in `folder`, except for its place in the data.

        Raises:
            DivergenceError: it is one time too many; nothing was changed.
        """
        jumped, place = state.step, state.data
        self._count(jumped, folder, spikes)
        checkpointer.restore(state, folder)
        spikes.go_back((state.data or {}).get("recent_losses", ()))
        state.data = place
        self._tell_keys(jumped, state.step, spikes, group)

    def _count(self, step: int, folder: Path, spikes: SpikeWatch) -> None:
        self.total += 1
        if self.total <= self._max_total:
            return
        loss, sigmas = spikes.latest
        raise DivergenceError(
            f"step {step}: the loss must not jump more than watch.max_rollbacks={self._max_total} "
            f"times; this is number {self.total}, {loss:.4g}, {sigmas:.1f} standard deviations "
            f"above its mean. The newest checkpoint is {folder}. Look at the samples that the "
            "events `rollback` name, or lower optimizer.learning_rate."
        )

    def _tell_keys(self, jumped: int, step: int, spikes: SpikeWatch, group: Group) -> None:
        undone = {s: list(keys) for s, keys in self._keys.items() if s > step}
        self._keys = {s: keys for s, keys in self._keys.items() if s <= step}
        ranks = group.gather(undone)
        if self._tell is None:
            return
        keys = {s: [rank.get(s, []) for rank in ranks] for s in sorted(undone)}
        facts = {"step": jumped, "to_step": step, "loss": round(spikes.latest.loss, 6)}
        facts |= {"sigmas": round(spikes.latest.sigmas, 1), "num_rollbacks": self.total}
        self._tell("rollback", {**facts, "keys": keys})
