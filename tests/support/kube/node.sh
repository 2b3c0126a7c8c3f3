# A node: a machine of its own as far as its programs can see. Arguments: its name, its network namespace, its folder. It
# lives until its standard input is closed, so that it never outlives the test that started it.
set -eu

# The cgroups of this process, a line each: how the kernel names the hierarchy, and the folder.
cgroups() {
    while IFS=: read -r _ hierarchy path; do
        place=/sys/fs/cgroup/${hierarchy#name=}
        # The second version is alone, or beside the first.
        if [ -z "$hierarchy" ] && [ -d /sys/fs/cgroup/unified ]; then place=/sys/fs/cgroup/unified; fi
        place=${place%/}${path%/}
        echo "${hierarchy:-2} $place"
    done < /proc/self/cgroup
}

# Moves this process into cgroups of its own, below those that it is in.
join_cgroups() {
    for parent in $parents; do
        mkdir -p "$parent/$group"
        for file in cpuset.cpus cpuset.mems; do
            # Of the first version: none that has no CPUs can be joined.
            if [ -e "$parent/$group/$file" ] && [ ! -e "$parent/cgroup.controllers" ]; then
                cat "$parent/$file" > "$parent/$group/$file"
            fi
        done
        echo 0 > "$parent/$group/cgroup.procs"
    done
}

remove_cgroups() {
    for parent in $parents; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$parent/$group" -depth -type d -exec rmdir {} + 2> /dev/null || :
            [ -d "$parent/$group" ] || break
            # What was killed is still leaving.
            sleep 0.2
        done
    done
}

mount_cgroups() {
    if [ "$hierarchies" = 2 ]; then
        mount -t cgroup2 cgroup /sys/fs/cgroup
        # Only a cgroup without processes of its own hands controllers on.
        mkdir /sys/fs/cgroup/machine
        for process in $(cat /sys/fs/cgroup/cgroup.procs); do
            echo "$process" > /sys/fs/cgroup/machine/cgroup.procs || :
        done
        for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
            echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || :
        done
        return
    fi
    mount -t tmpfs cgroups /sys/fs/cgroup
    for hierarchy in $hierarchies; do
        place=/sys/fs/cgroup/${hierarchy#name=}
        case $hierarchy in
            2) place=/sys/fs/cgroup/unified type='-t cgroup2' ;;
            name=*) type="-t cgroup -o none,$hierarchy" ;;
            *) type="-t cgroup -o $hierarchy" ;;
        esac
        mkdir "$place"
        # shellcheck disable=SC2086
        mount $type cgroup "$place"
    done
}

# Whatever the node writes, it writes into its own folder.
mount_files() {
    for place in etc var/lib var/log; do
        mkdir -p "$folder/host/$place" "$folder/work/$place"
        mount -t overlay -o "lowerdir=/$place,upperdir=$folder/host/$place,workdir=$folder/work/$place" node "/$place"
    done
    mount -t tmpfs run /run
    mkdir -p "$folder/kubelet" /var/lib/kubelet
    mount --bind "$folder/kubelet" /var/lib/kubelet
    rm -rf /etc/containerd /etc/cni /etc/docker /etc/crio /etc/rancher /etc/piecemeal /etc/resolv.conf
    cp -r "$folder/etc/." /etc
}

run_programs() {
    containerd > "$folder/logs/containerd.log" 2>&1 &
    until ctr version > /dev/null 2>&1; do sleep 0.1; done
    for archive in "$folder"/images/*; do
        ctr --namespace k8s.io images import "$archive" >> "$folder/logs/import.log" 2>&1
    done
    "$folder/bin/kubelet" --config="$folder/kubelet.json" --kubeconfig="$folder/kubelet.kubeconfig" \
        --hostname-override="$name" > "$folder/logs/kubelet.log" 2>&1 &
    "$folder/bin/kube-proxy" --config="$folder/proxy.json" > "$folder/logs/proxy.log" 2>&1 &
}

case $1 in
    inside)
        name=$2 folder=$3 hierarchies=$4
        hostname "$name"
        # As systemd makes it.
        mount --make-rshared /
        mount -t sysfs sysfs /sys
        mount_cgroups
        mount_files
        run_programs
        # Nothing is ever written: the end of this process, the first of its namespace, ends all others and all mounts.
        read -r _ || :
        ;;
    *)
        name=$1 netns=$2 folder=$3
        # Which tells whose it is.
        group=${folder##*/}
        hierarchies=$(cgroups | cut -d' ' -f1 | tr '\n' ' ')
        parents=$(cgroups | cut -d' ' -f2)
        # A shell takes standard input from what it runs beside itself.
        exec 3<&0
        (
            join_cgroups
            exec nsenter --net="$netns" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc --cgroup \
                sh "$folder/node.sh" inside "$name" "$folder" "${hierarchies% }"
        ) <&3 &
        # All but the namespace of processes, which is that of its child, can be entered through it.
        echo $! > "$folder/machine.new" && mv "$folder/machine.new" "$folder/machine.pid"
        wait $! || :
        remove_cgroups
        rm -rf "$folder"
        ;;
esac
