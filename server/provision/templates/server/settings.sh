: "${PROGRAM:=medmap-server}"
: "${SUPERLINK_PORT:=@superlink_port@}"  # on the loopback only: who reaches it directly can start runs at every hospital
