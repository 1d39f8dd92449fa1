"""Bundles of DAG files that are no folders of this machine: only their classes know where the files are."""


def answer(question):
    """Refreshes a bundle. Says in which folder its files are, and in which version; or why that cannot be known."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    try:
        bundle = DagBundlesManager().get_bundle(question["name"])
        bundle.initialize()
        bundle.refresh()
        version = bundle.get_current_version() if bundle.supports_versioning else None
        version = getattr(version, "version", version)
        return {"path": str(bundle.path), "version": version}
    except Exception as error:  # noqa: BLE001 - whatever it is, the operator is told
        return {"error": f"{type(error).__name__}: {error}"}
