"""Tasks in another Python."""

import sys

from airflow.sdk import DAG, task

with DAG("conformance_pythons", schedule=None):

    @task.virtualenv(requirements=[], system_site_packages=True, serializer="pickle")
    def virtual(word, times):
        import sys

        return [word * times, sys.prefix != sys.base_prefix]

    @task.external_python(python=sys.executable, expect_airflow=False)
    def external(word):
        return word.upper()

    @task.branch_external_python(python=sys.executable, expect_airflow=False)
    def chooses():
        return ["taken"]

    @task
    def taken(value):
        return value

    @task
    def left():
        return 0

    value = external("abc")
    virtual("ab", 2) >> chooses() >> [taken(value), left()]

    @task.virtualenv(requirements=[], system_site_packages=True)
    def fails_there():
        raise SystemExit(3)

    @task.virtualenv(requirements=[], system_site_packages=True, skip_on_exit_code=5)
    def skips_there():
        import sys

        sys.exit(5)

    fails_there(), skips_there()
