"""The families of tasks that networks, data and metrics tell apart."""

from typing import Literal

TaskFamily = Literal["classification", "segmentation"]
