: "${PROGRAM:=start.sh}"
: "${SUPERLINK:=@address@:@port@}"  # where the federation's server is
: "${RUNTIME_PORT:=9094}"           # a port of this machine, on its loopback only, where gate and worker meet; any free one
: "${WORKER_VARIABLES:=USER LANG TMPDIR CUDA_VISIBLE_DEVICES OMP_NUM_THREADS MEDMAP_SKULL_STRIP}"  # of the environment, what the worker is given too
