#!/usr/bin/env bash
# Three hosts on one machine with an engine: a coordinator and two sites, each with its own compose
# file, and one run of the synthetic clinic notes. Needs docker with compose, and root to give
# folders to the containers' user; leaves all in ./work.
set -euo pipefail
umask 022
[ "$(id -u)" = 0 ] || { echo "Run it as root: folders are given to user 10001." >&2; exit 1; }
cd "$(dirname "$0")"
address=${1:-$(hostname -I | awk '{print $1}')}
work=$PWD/work
[ ! -e "$work" ] || { echo "$work exists: remove it first." >&2; exit 1; }
mkdir "$work"

compose() { # compose HOST KIND ARGUMENTS…
  docker compose --project-name "lorica-$1" --project-directory "$work/$1" \
    --file "$PWD/../$2/compose.yaml" "${@:3}"
}
for image in coordinator trainer node; do
  docker build --quiet --file ../Dockerfile --target "$image" --tag "lorica-$image" ../..
done

install -d -o 10001 -g 10001 -m 700 "$work/coordinator/coordinator"
compose coordinator coordinator run --rm coordinator coordinator init "$address"
compose coordinator coordinator up -d --no-build --wait

for site in north south; do
  install -d -o 10001 -g 10001 -m 700 "$work/$site/site" "$work/$site/private"
  install -d -m 755 "$work/$site/data"
  docker run --rm --network none --entrypoint python lorica-trainer -c '
import csv, sys
from lorica.simulations.examples.clinic_notes import train_test
rows = train_test()[0]
own = rows[0::2] if sys.argv[1] == "north" else rows[1::2]
writer = csv.DictWriter(sys.stdout, list(own[0]), lineterminator="\n")
writer.writeheader(); writer.writerows(own)' "$site" >"$work/$site/data/records.csv"
  token=$(compose coordinator coordinator exec -T coordinator lorica coordinator invite "$site")
  compose "$site" site run --rm --no-deps setup init --token "$token" \
    --data /data/records.csv --config /site/site.toml
  sed -i 's#^path = "ledger.sqlite"#path = "/private/ledger.sqlite"#' "$work/$site/site/site.toml"
  compose "$site" site run --rm --no-deps setup ledger create --config /site/site.toml
  compose "$site" site run --rm --no-deps setup approve --yes --config /site/site.toml
  cp "$work/$site/site/registration.json" "$work/coordinator/coordinator/$site.json"
  chown 10001:10001 "$work/coordinator/coordinator/$site.json"
  compose coordinator coordinator exec -T coordinator \
    lorica coordinator admit "/coordinator/$site.json"
  compose "$site" site up -d --no-build --wait
done

cp plan.toml "$work/coordinator/coordinator/plan.toml"
chown 10001:10001 "$work/coordinator/coordinator/plan.toml"
compose coordinator coordinator exec coordinator \
  lorica run submit /coordinator/plan.toml --watch
