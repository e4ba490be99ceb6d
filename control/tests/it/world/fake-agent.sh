#!/bin/sh
# Stands for `ardent agent --spec FILE`: says what an agent says, with a tail for Postgres.
spec=$2
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$spec"; }
dir=$(field compute_dir)
case $(field branch) in
broken*) echo '{"event":"failed","code":"no_postgres","message":"no server programs of major 15 are here"}'; exit 1 ;;
silent*) exit 3 ;;
slow*) read -r line; exit 0 ;;
esac
echo "$$" >>"$dir/starts"
# Ends by itself when this script is killed, as Postgres in its sandbox does; holds the output open meanwhile.
tail --pid=$$ -f /dev/null 2>/dev/null &
postgres=$!
echo 'a library that prints'
echo '{"event":"progress","step":"base backup","elapsed_ms":1}'
echo "{\"event\":\"ready\",\"socket_dir\":\"$dir\",\"port\":5432,\"base_lsn\":\"0/2000\",\"postmaster_pid\":$postgres,\"warm\":false,\"missing_libraries\":[\"timescaledb\"]}"
if [ "$(field branch)" = idles ]; then
    read -r line <"$dir/idle.fifo"
    echo '{"event":"idle"}'
else
    read -r line
fi
# Does not stop when it is told to, but when it is killed.
case $(field branch) in stubborn*) exec sleep 600 ;; esac
kill $postgres
echo '{"event":"stopped","clean":true,"end_lsn":"0/3000"}'
