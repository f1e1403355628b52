#!/usr/bin/env bash
# A picture of the top of a report, as the README shows it: 1000 pixels wide.
#   bash scripts/screenshot_report.sh model_save/demo/report.html docs/report.png [HEIGHT]
set -euo pipefail
page=${1:?usage: screenshot_report.sh REPORT.html PICTURE.png [HEIGHT]} picture=${2:?where the picture goes} height=${3:-1450}
[ -f "$page" ] || { echo "error: $page: no such report -> bash step9_eval.sh writes one" >&2 && exit 3; }
for browser in chromium chromium-browser google-chrome chrome ''; do
  command -v "$browser" >/dev/null 2>&1 && break
done
[ -n "$browser" ] || { echo "error: no Chromium here -> apt-get install chromium" >&2 && exit 3; }

mkdir -p "$(dirname "$picture")"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --user-data-dir="$profile" \
  --window-size="1000,$height" --screenshot="$(realpath "$picture")" "file://$(realpath "$page")" >"$profile/log" 2>&1 ||
  { cat "$profile/log" >&2 && exit 1; }
echo "$picture: $(($(stat -c %s "$picture") / 1000)) kB"
