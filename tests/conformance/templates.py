"""What templates come to."""

import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task
from airflow.sdk.bases.operator import BaseOperator


def shout(text):
    return f"{text}!"


class Rendered(BaseOperator):
    template_fields = ("value", "more")

    def __init__(self, value, more=None, **kwargs):
        super().__init__(**kwargs)
        self.value, self.more = value, more

    def execute(self, context):
        return self.value


VALUES = {
    "dates": "{{ ds }} {{ ds_nodash }} {{ ts }} {{ ts_nodash }} {{ ts_nodash_with_tz }} {{ logical_date }}",
    "interval": "{{ data_interval_start }} {{ data_interval_end }}",
    "names": "{{ dag.dag_id }} {{ task.task_id }} {{ run_id }} {{ ti.map_index }} {{ task_instance_key_str }}",
    "run": "{{ dag_run.run_type }} {{ dag_run.conf }} {{ params.depth }} {{ params['words'] }}",
    "macros": "{{ macros.ds_add(ds, 5) }} {{ macros.ds_format(ds, '%Y-%m-%d', '%d/%m') }} {{ macros.datetime(2020, 1, 2) }}",
    "filters": "{{ logical_date | ds }} {{ logical_date | ts_nodash }} {{ 'x' | shout }} {{ [3, 1] | sort }}",
    "own": "{{ greeting }} {{ add(1, 2) }}",
    "variable": "{{ var.json.conformance.answer }} {{ var.value.get('absent', 'default') }}",
    "connection": "{{ conn.conformance.host }} {{ conn.conformance.port }}",
    "flow": "{% for n in range(3) %}{{ loop.index }}{% if not loop.last %},{% endif %}{% endfor %}",
}

with DAG(
    "conformance_templates",
    schedule=None,
    params={"depth": 3, "words": ["a", "b"]},
    user_defined_macros={"greeting": "hello", "add": lambda a, b: a + b},
    user_defined_filters={"shout": shout},
) as dag:
    for name, text in VALUES.items():
        Rendered(task_id=name, value=text, more={"nested": [text, {"deep": (text,)}], "number": 5})
    BashOperator(task_id="bash", bash_command="echo {{ ds }} $WORD", env={"WORD": "{{ params.depth }}"}, append_env=True)

with DAG("conformance_native", schedule=None, render_template_as_native_obj=True, params={"items": [1, 2]}) as native:
    Rendered(task_id="list", value="{{ params['items'] }}")
    Rendered(task_id="number", value="{{ 1 + 2 }}")
    Rendered(task_id="date", value="{{ logical_date.date().isoformat() }}")

    @task
    def typed(value):
        return type(value).__name__

    typed("{{ params['items'] }}")

with DAG("conformance_undefined", schedule=None) as undefined:
    Rendered(task_id="absent", value="{{ nothing_of_this_name }}")
    Rendered(task_id="missing_param", value="{{ params.nothing }}")
