"""Tasks: queries, targets, losses and predictions."""

from xdecoder.tasks.base import Task, loss_key
from xdecoder.tasks.build import build_tasks
from xdecoder.tasks.config import LossConfig
from xdecoder.tasks.multi_task import MultiTask

__all__ = ["LossConfig", "MultiTask", "Task", "build_tasks", "loss_key"]
