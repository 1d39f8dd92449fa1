"""A weight rule of one's own."""

from airflow.plugins_manager import AirflowPlugin
from airflow.task.priority_strategy import PriorityWeightStrategy


class ByName(PriorityWeightStrategy):
    def get_weight(self, ti):
        return len(ti.task_id) * 10 + ti.map_index + (ti.try_number or 0)


class OwnWeights(AirflowPlugin):
    name = "own_weights"
    priority_weight_strategies = [ByName]
