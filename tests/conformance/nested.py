"""Mapped task groups within mapped task groups, and what is around them."""

from airflow.sdk import DAG, task, task_group


@task
def give(value):
    return value


@task
def add(a, b):
    return f"{a}{b}"


@task
def fail_on(value, bad):
    if value == bad:
        raise ValueError(f"{value} is bad")
    return value


with DAG("conformance_nested", schedule=None):

    @task_group
    def outer(v):
        t = give.override(task_id="t")(v)

        @task_group
        def inner(w):
            a = give.override(task_id="a")(w)
            b = give.override(task_id="b")(a)
            return b

        middle = inner.expand(w=[10, 20])
        t >> middle
        e = give.override(task_id="e")("end")
        middle >> e

    outer.expand(v=["x", "y", "z"]) >> give.override(task_id="after")(1)


with DAG("conformance_nested_over_values", schedule=None):

    @task
    def numbers():
        return [1, 2]

    @task_group
    def outer(v):
        t = give.override(task_id="t")(v)

        @task_group
        def inner(w):
            give.override(task_id="a")(w)

        t >> inner.expand(w=numbers())

    outer.expand(v=["x", "y"])


with DAG("conformance_nested_failures", schedule=None):

    @task_group
    def outer(v):
        t = fail_on.override(task_id="t")(v, "y")

        @task_group
        def inner(w):
            a = fail_on.override(task_id="a")(w, 20)
            give.override(task_id="b")(a)
            give.override(task_id="c", trigger_rule="one_failed")(a)

        middle = inner.expand(w=[10, 20])
        t >> middle
        middle >> give.override(task_id="e", trigger_rule="all_done")("end")

    outer.expand(v=["x", "y"])


with DAG("conformance_nested_over_own_values", schedule=None):

    @task
    def pair(v):
        return [v, v]

    @task_group
    def outer(v):
        values = pair(v)

        @task_group
        def inner(w):
            give.override(task_id="a")(w)

        inner.expand(w=values)

    outer.expand(v=["x", "y"])


with DAG("conformance_groups_in_a_row", schedule=None):

    @task_group
    def first(v):
        give.override(task_id="a")(v)

    @task_group
    def plain_inside(v):
        @task_group
        def plain():
            return give.override(task_id="p")(v)

        return add.override(task_id="q")(plain(), "!")

    first.expand(v=[1, 2, 3]) >> plain_inside.expand(v=["k", "l"])
