"""Cluster policies."""


def task_policy(task):
    task.retries = 2


def dag_policy(dag):
    dag.tags.add("seen")


def task_instance_mutation_hook(task_instance, dag_run=None):
    if task_instance.task_id.startswith("routed"):
        task_instance.priority_weight = 40 + task_instance.map_index
        task_instance.pool_slots = 2 if task_instance.map_index % 2 else 1
        task_instance.queue = (dag_run.conf if dag_run else {}).get("queue", "default")
    if task_instance.task_id == "tried_more":
        task_instance.max_tries = 5
