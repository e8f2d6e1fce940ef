: "${PROGRAM:=flower-supernode}"
: "${SUPERLINK:=@address@:@port@}"  # where the federation's server is
: "${RUNTIME_PORT:=9094}"           # a port of this machine, on its loopback only; any free one
