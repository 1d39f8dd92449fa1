"""Records what Airflow 2.11 makes of `idioms.py`: the runs that its scheduler would create, and their rendered fields.

    AIRFLOW_HOME=/tmp/af2 python record.py > recorded.json    # with the interpreter of an environment with apache-airflow==2.11.0
"""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
warnings.simplefilter("ignore")

from airflow.models import DagBag  # noqa: E402
from airflow.models.serialized_dag import SerializedDagModel  # noqa: E402
from airflow.serialization.helpers import serialize_template_field  # noqa: E402
from airflow.utils import db, timezone  # noqa: E402
from airflow.utils.session import create_session  # noqa: E402
from airflow.utils.state import DagRunState  # noqa: E402
from airflow.utils.types import DagRunType  # noqa: E402

MOST = 8


def record(dag, session):
    dag.sync_to_db(session=session)
    SerializedDagModel.write_dag(dag, session=session)
    session.flush()
    last, runs = None, []
    while len(runs) < MOST:
        info = dag.next_dagrun_info(last)
        if info is None or info.run_after > timezone.utcnow():
            break
        last = info.data_interval
        run = dag.create_dagrun(
            run_type=DagRunType.SCHEDULED, execution_date=info.logical_date, data_interval=info.data_interval,
            state=DagRunState.RUNNING, session=session,
        )
        session.flush()
        fields = {}
        for ti in sorted(run.task_instances, key=lambda ti: ti.task_id):
            ti.task = dag.get_task(ti.task_id).prepare_for_execution()
            ti.render_templates(context=ti.get_template_context(session=session))
            fields[ti.task_id] = {
                name: serialize_template_field(getattr(ti.task, name), name) for name in ti.task.template_fields
            }
        start, end = info.data_interval
        dates = {"logical_date": info.logical_date, "data_interval_start": start, "data_interval_end": end}
        runs.append({"fields": fields, **{k: v.isoformat() for k, v in dates.items()}})
    return runs


def main():
    db.initdb()
    bag = DagBag(str(Path(__file__).with_name("idioms.py")), include_examples=False)
    assert not bag.import_errors, bag.import_errors
    with create_session() as session:
        recorded = {dag_id: record(dag, session) for dag_id, dag in sorted(bag.dags.items())}
        session.rollback()
    json.dump(recorded, sys.stdout, indent=1, ensure_ascii=False)


main()
