"""Which of several processes this one is, by the variables that launchers set."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessRank:
    """Which of several processes this one is.

    It decides nothing but where the process begins, and which GPU and how many cores are its share:
    locks alone decide who completes a part.

    Attributes
    ----------
    rank, world_size : int
        Which of all processes, from 0, and how many there are.
    local_rank : int or None
        Which of those on this machine; None if no launcher says.
    local_world_size : int
        How many share the cores of this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "ProcessRank":
        """Read what torchrun, srun and SLURM's job arrays say.

        Tasks of srun have cores of their own, so only torchrun's processes share them.

        Parameters
        ----------
        environment : mapping of str to str

        Returns
        -------
        ProcessRank
            That of one process alone, if nothing is said, or nothing that can be understood.

        Notes
        -----
        https://docs.pytorch.org/docs/stable/elastic/run.html,
        https://slurm.schedmd.com/srun.html, https://slurm.schedmd.com/job_array.html
        """

        def read(*names: str) -> int | None:
            for name in names:
                text = environment.get(name, "")
                if text.isascii() and text.isdecimal() and len(text) < 10:
                    return int(text)
            return None

        rank, world_size = read("RANK"), read("WORLD_SIZE")
        if rank is None or world_size is None:
            rank, world_size = read("SLURM_PROCID") or 0, read("SLURM_NTASKS") or 1
        task, n_tasks = read("SLURM_ARRAY_TASK_ID"), read("SLURM_ARRAY_TASK_COUNT")
        if task is not None and n_tasks:
            first, step = read("SLURM_ARRAY_TASK_MIN") or 0, read("SLURM_ARRAY_TASK_STEP") or 1
            rank += max(0, task - first) // step * world_size
            world_size *= n_tasks
        world_size = max(1, world_size)
        return cls(
            rank % world_size,
            world_size,
            read("LOCAL_RANK", "SLURM_LOCALID"),
            max(1, read("LOCAL_WORLD_SIZE") or 1),
        )

    def order(self, items: Sequence[Item]) -> list[Item]:
        """Put items in the order in which this process goes through them.

        Parameters
        ----------
        items : sequence

        Returns
        -------
        list
            It begins at this process's place, and goes around.
        """
        start = self.rank * len(items) // self.world_size
        return [*items[start:], *items[:start]]

    def share(self, n_cores: int) -> int:
        """Compute this process's share of the cores.

        Parameters
        ----------
        n_cores : int
            Of the machine.

        Returns
        -------
        int
            At least 1.
        """
        return max(1, n_cores // self.local_world_size)
