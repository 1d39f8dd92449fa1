"""What reaches further than to the next task: setups and teardowns, mapped tasks after failures, sensors of groups, limits."""

from airflow.providers.standard.sensors.external_task import ExternalTaskSensor
from airflow.sdk import DAG, task, task_group
from airflow.sdk.exceptions import AirflowSkipException


@task
def fine():
    return 1


@task
def fails():
    raise ValueError("no")


@task
def skips():
    raise AirflowSkipException("not today")


@task
def give(value):
    return value


with DAG("conformance_setup_fails_far_away", schedule=None):
    s = fails.override(task_id="s")().as_setup()
    w1 = fine.override(task_id="w1")()
    w2, outside = (fine.override(task_id=name, trigger_rule="all_done")() for name in ("w2", "outside"))
    t = fine.override(task_id="t")().as_teardown(setups=s)
    s >> w1 >> w2 >> t
    w1 >> outside

with DAG("conformance_setup_skips_far_away", schedule=None):
    s = skips.override(task_id="s")().as_setup()
    w1 = fine.override(task_id="w1")()
    w2 = fine.override(task_id="w2", trigger_rule="all_done")()
    s >> w1 >> w2 >> fine.override(task_id="t")().as_teardown(setups=s)

with DAG("conformance_teardown_scope", schedule=None):
    s = fine.override(task_id="s")().as_setup()
    slow = fails.override(task_id="slow")()
    quick = fine.override(task_id="quick")()
    join = fine.override(task_id="join", trigger_rule="one_success")()
    t = fine.override(task_id="t")().as_teardown(setups=s)
    s >> [slow, quick] >> join >> t

with DAG("conformance_mapped_after_failure", schedule=None):
    bad = fails.override(task_id="bad")()
    bad >> give.override(task_id="literal").expand(value=[1, 2, 3])

    @task_group
    def group(v):
        give.override(task_id="a")(v)

    bad >> group.expand(v=["x", "y"])
    skips.override(task_id="skip")() >> give.override(task_id="skipped").expand(value=[1, 2])
    give.override(task_id="none", trigger_rule="all_done").expand(value=[])

with DAG("conformance_mapped_over_skipped", schedule=None):

    @task
    def nothing():
        raise AirflowSkipException("nothing")

    @task
    def broken():
        raise ValueError("broken")

    give.override(task_id="of_skipped", trigger_rule="all_done").expand(value=nothing())
    give.override(task_id="of_failed", trigger_rule="all_done").expand(value=broken())

with DAG("conformance_sensor_of_a_group", schedule=None):

    @task_group
    def watched():
        fine.override(task_id="one")() >> fine.override(task_id="two")()

    sensor = ExternalTaskSensor(
        task_id="sensor", external_dag_id="conformance_sensor_of_a_group", external_task_group_id="watched",
        poke_interval=0.5, timeout=60, allowed_states=["success"],
    )
    watched() >> fine.override(task_id="after")()
    sensor

with DAG("conformance_too_much_to_map", schedule=None):

    @task
    def much():
        return list(range(1100))

    give.expand(value=much())

with DAG("conformance_branch_over_mapped", schedule=None):

    @task.branch
    def choose():
        return "chosen"

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def stop():
        return False

    @task
    def values():
        return [1, 2]

    branch = choose()
    chosen = give.override(task_id="chosen").expand(value=[1, 2])
    other = give.override(task_id="other").expand(value=[3, 4])
    late = give.override(task_id="late").expand(value=values())
    branch >> [chosen, other, late]
    [chosen, other, late] >> fine.override(task_id="join", trigger_rule="none_failed_min_one_success")()
    stopped = give.override(task_id="stopped").expand(value=[5])
    stop() >> stopped >> fine.override(task_id="after_stop", trigger_rule="all_done")()

    @task_group
    def branched(v):
        @task.branch
        def pick(v):
            return "branched.left" if v == "x" else "branched.right"

        pick(v) >> [give.override(task_id="left")(v), give.override(task_id="right")(v)]

    branched.expand(v=["x", "y"])
