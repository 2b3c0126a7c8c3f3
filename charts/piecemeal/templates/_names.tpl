{{/* The prefix of objects' names: short enough that the longest name made of it fits. */}}
{{- define "piecemeal.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- include "piecemeal.short" (list $full 24) -}}
{{- end }}

{{/* [text, most characters]: a text that is too long is cut, and ends with a part of its hash. */}}
{{- define "piecemeal.short" -}}
{{- $text := index . 0 -}}
{{- $most := int (index . 1) -}}
{{- if le (len $text) $most -}}
{{- $text | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (trunc (sub $most 6 | int) $text | trimSuffix "-") (sha256sum $text | trunc 5) -}}
{{- end -}}
{{- end }}

{{/* [context, component]: the labels that select a component's pods. */}}
{{- define "piecemeal.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: piecemeal
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- with $context.pool }}
piecemeal.dev/pool: {{ .slug }}
{{- end }}
{{- with $context.peer }}
piecemeal.dev/peer: {{ . }}
{{- end }}
{{- end }}

{{/* [context, component]: the metadata that every object has, below its name. */}}
{{- define "piecemeal.labels" -}}
{{- $context := index . 0 -}}
{{ include "piecemeal.selector" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
{{- with $context.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* [context, component, name] or [context, component, name, further annotations]: an object's metadata in its namespace. */}}
{{- define "piecemeal.metadata" -}}
{{- $context := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $context.Release.Namespace }}
{{ include "piecemeal.metadata.rest" . }}
{{- end }}

{{/* The same for an object without a namespace. */}}
{{- define "piecemeal.metadata.cluster" -}}
name: {{ index . 2 }}
{{ include "piecemeal.metadata.rest" . }}
{{- end }}

{{- define "piecemeal.metadata.rest" -}}
{{- $context := index . 0 -}}
labels:
  {{- include "piecemeal.labels" . | nindent 2 }}
{{- $more := dict -}}
{{- if gt (len .) 3 }}{{ $more = index . 3 }}{{ end -}}
{{- with merge (deepCopy $more) $context.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* [weight, event]: the annotations of a hook's object, which Helm deletes before the next hook or after success. */}}
{{- define "piecemeal.hook" -}}
{{- dict "helm.sh/hook" (index . 1) "helm.sh/hook-weight" (index . 0 | toString) "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" | toJson -}}
{{- end }}

{{- define "piecemeal.image" -}}
{{- $registry := .Values.global.imageRegistry | default .Values.image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry .Values.image.repository) .Values.image.repository (ne $registry "") -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- define "piecemeal.secret.authority" -}}
{{- .Values.keys.existingAuthoritySecret | default (printf "%s-authority-key" (include "piecemeal.fullname" .)) -}}
{{- end }}

{{- define "piecemeal.secret.join" -}}
{{- .Values.keys.existingJoinSecret | default (printf "%s-join-key" (include "piecemeal.fullname" .)) -}}
{{- end }}

{{/* The listening address of daemons that other nodes reach: IPv4 only, unless the values ask for IPv6, since a node may have none. */}}
{{- define "piecemeal.any" -}}
{{- ternary "[::]" "0.0.0.0" (or (has "IPv6" .Values.service.ipFamilies) (contains "DualStack" .Values.service.ipFamilyPolicy)) -}}
{{- end }}

{{/* [context, a variable with this pod's address, port]: how others reach this pod. */}}
{{- define "piecemeal.advertised" -}}
{{- $families := (index . 0).Values.service.ipFamilies -}}
{{- printf (ternary "[$(%s)]:%v" "$(%s):%v" (eq (first $families | default "") "IPv6")) (index . 1) (index . 2) -}}
{{- end }}

{{/* The IP family fields of a Service. */}}
{{- define "piecemeal.families" -}}
{{- $families := dict -}}
{{- with .Values.service.ipFamilyPolicy }}{{ $_ := set $families "ipFamilyPolicy" . }}{{ end -}}
{{- with .Values.service.ipFamilies }}{{ $_ := set $families "ipFamilies" . }}{{ end -}}
{{- with $families }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* The vendor's switch for all components. */}}
{{- define "piecemeal.on" -}}
{{- if .Values.p2p.plusMode.enable }}on{{ end -}}
{{- end }}

{{- define "piecemeal.webhook.on" -}}
{{- if and .Values.p2p.plusMode.enable .Values.webhook.enabled }}on{{ end -}}
{{- end }}

{{/* Names of the style localhost are 127.0.0.1, which runtimes know: nodes are set up only if `node.names` asks for other names. */}}
{{- define "piecemeal.node.on" -}}
{{- if and .Values.p2p.plusMode.enable .Values.node.enabled (or (ne .Values.webhook.nameStyle "localhost") .Values.node.names) }}on{{ end -}}
{{- end }}

{{- define "piecemeal.scheduler.on" -}}
{{- if and .Values.p2p.plusMode.enable (eq .Values.p2p.plusMode.downloadPattern "p2p") }}on{{ end -}}
{{- end }}
