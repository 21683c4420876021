"""Whether a bucket is one in which checkpoints are whole."""

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.gcloud import Gcloud, read_object


def check_bucket(gcloud: Gcloud, bucket: str, *, dry_run: bool) -> None:
    """A checkpoint is whole when its folder gets its name, which must happen at once.

    Raises:
        DeployError: that bucket cannot.
    """
    look = gcloud.describe_bucket(bucket)
    if dry_run:
        print(f"\n# whether folders of it get their names at once\n{look.render()}")
        return
    said = read_object(look)
    names = said.get("hierarchical_namespace") or said.get("hierarchicalNamespace") or {}
    if not names.get("enabled"):
        raise DeployError(
            f"gs://{bucket} has no hierarchical namespace, without which a checkpoint that is half "
            "written looks whole; make one that has:  gcloud storage buckets create gs://NAME "
            "--uniform-bucket-level-access --enable-hierarchical-namespace --location REGION"
        )
