{{/* [context, component]: the pod security context of a component; only node set-up runs as root. */}}
{{- define "piecemeal.pod.security" -}}
{{- include "piecemeal.pod.security.of" (append . (include "piecemeal.user" . | fromYaml)) -}}
{{- end }}

{{/* The same for pods that mount a host folder, which SELinux hides from containers of the ordinary type. */}}
{{- define "piecemeal.pod.security.host" -}}
{{- $ours := include "piecemeal.user" . | fromYaml -}}
{{- include "piecemeal.pod.security.of" (append . (merge $ours (include "piecemeal.selinux" (index . 0) | fromYaml))) -}}
{{- end }}

{{- define "piecemeal.user" -}}
{runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, fsGroupChangePolicy: OnRootMismatch}
{{- end }}

{{- define "piecemeal.selinux" -}}
{{- with .Values.seLinuxOptions -}}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The same for host folders and root without capabilities: the pod can write files that root owns, and do nothing else as root. */}}
{{- define "piecemeal.pod.security.root" -}}
{{- $ours := dict "runAsUser" 0 "runAsGroup" 0 -}}
{{- include "piecemeal.pod.security.of" (append . (merge $ours (include "piecemeal.selinux" (index . 0) | fromYaml))) -}}
{{- end }}

{{- define "piecemeal.pod.security.of" -}}
{{- $ours := merge (index . 2) (dict "seccompProfile" (dict "type" "RuntimeDefault")) -}}
securityContext:
  {{- mergeOverwrite $ours (index (index . 0).Values (index . 1)).podSecurityContext | toYaml | nindent 2 }}
{{- end }}

{{- define "piecemeal.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* [context, component, checksum of its configuration]: the metadata of a pod. A component restarts when its own configuration changes, and no other. */}}
{{- define "piecemeal.pod.metadata" -}}
{{- $context := index . 0 -}}
{{- $values := index $context.Values (index . 1) -}}
labels:
  {{- include "piecemeal.selector" . | nindent 2 }}
  {{- with merge (deepCopy $values.podLabels) $context.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (deepCopy $values.podAnnotations) (dict "kubectl.kubernetes.io/default-container" (index . 1)) -}}
{{- with index . 2 }}{{ $_ := set $annotations "checksum/config" . }}{{ end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A cache's quota: a volume that goes with its pod. More than the quota and what is on its way ends the pod rather than fills the node. */}}
{{- define "piecemeal.scratch" -}}
{{- $quota := include "piecemeal.bytes" . | int64 -}}
emptyDir: {{ if $quota }}{sizeLimit: {{ add (div (mul $quota 5) 4194304) 1024 }}Mi}{{ else }}{}{{ end }}
{{- end }}

{{/*
[context, component, terms]: where a component's pods run. `terms` as in _pools.tpl: what a node must be by the chart's own
reasons. With "hook" at the end they have no priority: the quota that grants it may not exist yet, or any more. Service links are off, since a Service's variables look like Piecemeal's settings.
*/}}
{{- define "piecemeal.pod.place" -}}
{{- $context := index . 0 -}}
{{- $values := index $context.Values (index . 1) -}}
enableServiceLinks: false
{{- with $context.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with ternary "" $values.priorityClassName (has "hook" .) }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  {{- merge (dict "kubernetes.io/os" "linux") (deepCopy $values.nodeSelector) | toYaml | nindent 2 }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := deepCopy $values.affinity -}}
{{- $terms := include "piecemeal.terms" (index . 2) -}}
{{- if $terms -}}
{{- $ours := dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" (fromJsonArray $terms))) -}}
{{- $affinity = mergeOverwrite $affinity $ours -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* [context, component]: the beginning of a component's container. */}}
{{- define "piecemeal.container" -}}
{{- $context := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "piecemeal.image" $context | quote }}
  imagePullPolicy: {{ $context.Values.image.pullPolicy }}
{{- end }}

{{/* [context, component]: extraArgs, as items of a list. */}}
{{- define "piecemeal.args" -}}
{{- range $index, $arg := (index (index . 0).Values (index . 1)).extraArgs }}
{{- if $index }}{{ "\n" }}{{ end }}- {{ $arg | toString | quote }}
{{- end }}
{{- end }}

{{/* [port's name, host or empty]: a daemon is alive while its admin port answers, even if it is not ready. */}}
{{- define "piecemeal.probes" -}}
{{- $host := index . 0 -}}
startupProbe:
  httpGet: {path: /livez, port: admin{{ with $host }}, host: {{ . }}{{ end }}}
  periodSeconds: 3
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin{{ with $host }}, host: {{ . }}{{ end }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* The daemon's own folder below a host folder: root keeps the host folder, and the daemon has no access to its other content. */}}
{{- define "piecemeal.own" -}}
- name: own-folder
  image: {{ include "piecemeal.image" (index . 0) | quote }}
  imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
  args: [chart, own, {{ index . 1 | quote }}, --user, "65532", --group, "65532"]
  securityContext:
    runAsNonRoot: false
    runAsUser: 0
    runAsGroup: 0
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL], add: [CHOWN]}
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  volumeMounts:
    - {name: content, mountPath: /var/lib/piecemeal}
{{- end }}

{{/* [secret, key]: a volume with one key of the site, and no other key of its Secret. */}}
{{- define "piecemeal.key.volume" -}}
- name: key
  secret:
    secretName: {{ index . 0 }}
    defaultMode: 0440
    items: [{key: {{ index . 1 }}, path: {{ index . 1 }}}]
{{- end }}
