"""Gives the tasks of a Label Studio project predictions of a bundle of prompt-tune, which people correct.

    pip install prompt-tune label-studio-sdk
    LABEL_STUDIO_API_KEY=... python annotation/label_studio.py --url http://localhost:8080 --project 3

The labelling interface needs `<RectangleLabels>` with the names of the classes; detections of other classes are left
out. Tasks that have predictions of the same vocabularies are passed over, so that it can run again for new tasks.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
from label_studio_sdk.client import LabelStudio
from label_studio_sdk.label_interface.objects import PredictionValue

from prompt_tune import Detector
from prompt_tune.media.annotate import model_version
from prompt_tune.media.pre_annotations import label_studio_prediction


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080"))
    parser.add_argument("--project", type=int, required=True, help="the number in the address of the project")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    key = os.environ.get("LABEL_STUDIO_API_KEY")
    if not key:
        parser.error("set LABEL_STUDIO_API_KEY to an access token, which Label Studio shows under Account & Settings")
    detector = Detector(options.bundle, device=options.device)
    version = model_version(detector)
    client = LabelStudio(base_url=options.url, api_key=key)
    interface = client.projects.get(id=options.project).get_label_interface()
    from_name, to_name, field = interface.get_first_tag_occurence("RectangleLabels", "Image")
    known = set(interface.get_control(from_name).labels)
    learned_last = sorted(detector.classes, key=lambda key: key[0] != "original")
    owners = {name: label for label, name in learned_last}  # of two classes of one name, the learned one has the label
    names = {(label, name): name for name, label in owners.items() if name in known}
    if not names:
        parser.error(f"project {options.project} has no label with the name of a class of {options.bundle}")
    done = 0
    for task in client.tasks.list(project=options.project, fields="all"):
        if any(entry.get("model_version") == version for entry in map(dict, task.predictions or [])):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = get_local_path(
                task.data[field], cache_dir=folder, hostname=options.url, access_token=key, task_id=task.id
            )
            (found,) = detector.detect(path)
        prediction = PredictionValue(**label_studio_prediction(found, names, version, from_name, to_name))
        client.predictions.create(task=task.id, **prediction.model_dump())
        done += 1
        print(f"task {task.id}: {len(found)} detections", file=sys.stderr)
    print(f"{done} tasks have predictions of {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
