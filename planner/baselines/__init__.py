"""Other systems' orders, as plans: what the planner is compared with in the simulator."""

from lorafusion.planner.baselines.flush import each_alone, one_after_another
from lorafusion.planner.baselines.lorafusion import lorafusion_greedy
from lorafusion.planner.baselines.microbatches import Baseline
from lorafusion.planner.baselines.mlora import mlora

__all__ = ["Baseline", "each_alone", "lorafusion_greedy", "mlora", "one_after_another"]
