#!/bin/bash
# One run on several machines under SLURM, which goes on with itself when it is started again: sbatch slurm.sh
#SBATCH --job-name=cloze
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300

# TERM comes five minutes before the end: the run saves and stops. --resume starts where there is nothing yet.

set -euo pipefail

export CLOZE_CACHE="$SCRATCH/cloze"     # tokenised text; shared by the machines, or a machine's own
export OMP_NUM_THREADS=8                # cpus-per-task / processes of a machine
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # head would end scontrol by a signal

exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m cloze pretrain mlm --data "$SCRATCH/texts/" --out "$SCRATCH/runs/mine" --budget 100Gtok --resume
