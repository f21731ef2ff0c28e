#!/usr/bin/env bash
# PySceneDetect 0.7.2 beside opencv-contrib-python-headless 5.0.0.93: installing it takes TV-L1 (cv2.optflow) away, without a word.
#
# All four OpenCV distributions fill one folder, `cv2`. `scenedetect` requires opencv-python and `scenedetect-headless` requires
# opencv-python-headless; neither accepts a contrib build, which provides the same module and more, as what they need. pip
# writes the plain build over the contrib one and reports success; `pip check` finds nothing wrong with what is left. Seen:
#
#   installed                                                cv2.optflow.createOptFlow_DualTVL1   pip check
#   opencv-contrib-python-headless 5.0.0.93                  there                                no broken requirements
#   and then scenedetect 0.7.2 (brings opencv-python)        gone                                 no broken requirements
#   and then scenedetect-headless 0.7.2 (another venv)       gone                                 no broken requirements
#
# Uninstalling opencv-python again deletes files that both packages own, so that contrib has to be installed anew (--force-reinstall).
# So who computes TV-L1 flow with OpenCV cannot have PySceneDetect beside it, but for `--no-deps`.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for package in scenedetect scenedetect-headless; do
  python3 -m venv "$work/$package"
  pip() { "$work/$package/bin/python" -m pip --disable-pip-version-check "$@"; }
  look() {
    "$work/$package/bin/python" - <<'PYTHON'
import cv2

print("there" if hasattr(getattr(cv2, "optflow", None), "createOptFlow_DualTVL1") else "gone")
PYTHON
  }
  pip install --quiet numpy opencv-contrib-python-headless==5.0.0.93
  before=$(look)
  # The plain build of the same version, so that nothing but the missing modules differs.
  pip install --quiet "$package==0.7.2" "$( [ "$package" = scenedetect ] && echo opencv-python || echo opencv-python-headless )==5.0.0.93"
  after=$(look)
  check=$(pip check | tail -n 1)
  echo "$package: TV-L1 $before before, $after after; pip check: $check"
  [ "$before" = there ] && [ "$after" = gone ] && [ "$check" = "No broken requirements found." ] || status=1
done
[ "$status" = 0 ] && echo "as described: the contrib modules are written over and pip is content"
exit "$status"
