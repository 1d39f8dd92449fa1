"""Dynamic mapping, over everything that can be mapped over."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task, task_group

with DAG("conformance_mapping", schedule=None) as dag:

    @task
    def numbers():
        return [1, 2, 3]

    @task
    def words():
        return {"a": "x", "b": "y"}

    @task
    def nothing():
        return []

    @task
    def double(n):
        return n * 2

    @task
    def pair(n, word):
        return f"{n}{word}"

    @task
    def total(values):
        return sum(values)

    @task(map_index_template="{{ my_name }}")
    def named(n):
        from airflow.sdk import get_current_context

        get_current_context()["my_name"] = f"number {n}"
        return n

    total.override(task_id="of_literal")(double.override(task_id="literal").expand(n=[5, 6]))
    total.override(task_id="of_xcom")(double.override(task_id="xcom").expand(n=numbers()))
    pair.override(task_id="cross").expand(n=numbers(), word=["p", "q"])
    pair.override(task_id="partial").partial(word="z").expand(n=numbers())
    double.override(task_id="empty").expand(n=nothing()) >> BashOperator(task_id="after_empty", bash_command="echo no")
    named.expand(n=[7, 8])
    pair.override(task_id="kwargs").expand_kwargs([{"n": 1, "word": "a"}, {"n": 2, "word": "b"}])
    double.override(task_id="mapped").expand(n=numbers().map(lambda n: n + 100))
    pair.override(task_id="zipped").expand_kwargs(
        numbers().zip(numbers()).map(lambda both: {"n": both[0], "word": str(both[1])})
    )

    @task
    def sets():
        return [{"n": n, "word": "w"} for n in range(5)]

    pair.override(task_id="sets_of_task").expand_kwargs(sets())
    BashOperator.partial(task_id="sets_mapped").expand_kwargs(
        sets().map(lambda both: {"bash_command": f"echo {both['n']}"})
    )
    double.override(task_id="concatenated").expand(n=numbers().concat(numbers()))
    BashOperator.partial(task_id="bash").expand(bash_command=["echo one", "echo {{ ti.map_index }}"])

    @task
    def entry(item):
        return list(item)

    entry.expand(item=words())

    @task
    def maybe_skip(n):
        from airflow.sdk.exceptions import AirflowSkipException

        if n == 2:
            raise AirflowSkipException
        return n

    total.override(task_id="of_rest", trigger_rule="none_failed")(maybe_skip.expand(n=numbers()))

    @task_group
    def group(n):
        double.override(task_id="second")(double.override(task_id="first")(n))

    group.expand(n=[1, 2])
