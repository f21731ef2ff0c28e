#!/usr/bin/env bash
# A run on a cluster that is already there, from its data to its figures; every line may be run again.
#
#   ADDRESS=http://127.0.0.1:8265 STORE=s3://bucket cluster/submit.sh [EXPERIMENT.yaml]
#
# ADDRESS is Ray's dashboard: `ray dashboard cluster/aws.yaml`, `kubectl port-forward service/vicc-head-svc 8265` or an ssh
# tunnel brings it here. STORE/videos holds the videos, STORE/runs gets the runs. USE_GPU=false trains on CPUs.
set -euo pipefail
experiment=${1:-experiments/s3d_rgb_retrieval_ucf101.yaml}
: "${ADDRESS:?the address of the dashboard, for example http://127.0.0.1:8265}" "${STORE:?a store that every node reaches, for example s3://bucket}"
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} # the token is in ~/.ray/auth_token or in RAY_AUTH_TOKEN_PATH

# Nodes come once they are asked for, so whether they are to have GPUs must be said.
settings=(--set "runs=$STORE/runs" --set data.manifest=videos.parquet --set "train.use_gpu=${USE_GPU:-true}")

vicc index "$STORE/videos" --out videos.parquet --split 'train: group odd; query: group even'
vicc doctor "$experiment" --address "$ADDRESS" "${settings[@]}"
vicc submit "$experiment" --address "$ADDRESS" "${settings[@]}" --workers 2:8 --follow
vicc submit "$experiment" --address "$ADDRESS" "${settings[@]}" --verb evaluate --follow
vicc jobs --address "$ADDRESS"
