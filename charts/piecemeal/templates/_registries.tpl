{{/*
The accelerated registries and their URLs. The webhook, the mirrors, the peers and node set-up all use these, so that all of them know
the same names.
*/}}

{{/* A list, of a text with commas or of a list; JSON. */}}
{{- define "piecemeal.list" -}}
{{- $items := list -}}
{{- $texts := . -}}
{{- if kindIs "string" . -}}{{- $texts = list . -}}{{- end -}}
{{- range $texts -}}
{{- range splitList "," . -}}{{- $item := trim . -}}{{- if $item -}}{{- $items = append $items $item -}}{{- end -}}{{- end -}}
{{- end -}}
{{- toJson (uniq $items) -}}
{{- end }}

{{/* Each item as {id, hosts}, JSON; the id is empty for a registry, and no hosts are those of a region. */}}
{{- define "piecemeal.registries" -}}
{{- $registries := list -}}
{{- $domains := .Values.p2p.registryDomains -}}
{{- range include "piecemeal.list" .Values.p2p.registryInstances | fromJsonArray -}}
{{- $parts := splitn "=" 2 . -}}
{{- $id := ternary $parts._0 "" (and (hasPrefix "cri-" $parts._0) (not (contains "." $parts._0))) -}}
{{- $hosts := list -}}
{{- if $parts._1 -}}
{{- if not $id -}}{{- fail (printf "p2p.registryInstances: %q: only an instance's id has domains, as in cri-xxx=host1+host2" .) -}}{{- end -}}
{{- $hosts = splitList "+" $parts._1 -}}
{{- else if $id -}}
{{- range include "piecemeal.list" (index $domains $id | default list) | fromJsonArray -}}{{- $hosts = concat $hosts (splitList "+" .) -}}{{- end -}}
{{- else -}}
{{- $hosts = list . -}}
{{- end -}}
{{- $clean := list -}}
{{- range $hosts -}}
{{- $host := lower . | trim -}}
{{- $host = get (dict "index.docker.io" "docker.io" "registry-1.docker.io" "docker.io") $host | default $host -}}
{{- if not (regexMatch "^(\\*\\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]+)?$|^\\[[0-9a-f:]+\\](:[0-9]+)?$" $host) -}}
{{- fail (printf "p2p.registryInstances: %q is not a registry: write an instance's id (cri-xxx), a host (docker.io, reg.example.com:5000), a pattern (*.example.com), or an id with its domains (cri-xxx=host1+host2)" .) -}}
{{- end -}}
{{- include "piecemeal.port.check" (list "p2p.registryInstances" $host) -}}
{{- $clean = append $clean $host -}}
{{- end -}}
{{- $registries = append $registries (dict "id" $id "hosts" (uniq $clean)) -}}
{{- end -}}
{{- range $id, $_ := $domains -}}
{{- $known := list -}}{{- range $registries -}}{{- $known = append $known .id -}}{{- end -}}
{{- if not (has $id $known) -}}{{- fail (printf "p2p.registryDomains has domains of %s, which is not among p2p.registryInstances" $id) -}}{{- end -}}
{{- end -}}
{{- toJson $registries -}}
{{- end }}

{{/* As the webhook takes them, JSON. */}}
{{- define "piecemeal.registries.webhook" -}}
{{- $texts := list -}}
{{- range include "piecemeal.registries" . | fromJsonArray -}}
{{- if and .id .hosts -}}{{- $texts = append $texts (printf "%s=%s" .id (join "+" .hosts)) -}}
{{- else if .id -}}{{- $texts = append $texts .id -}}
{{- else -}}{{- $texts = concat $texts .hosts -}}{{- end -}}
{{- end -}}
{{- toJson (uniq $texts) -}}
{{- end }}

{{/* Their URLs, as NAME=URL each, JSON. An entry of `upstreams` overrides the URL that follows from the name. */}}
{{- define "piecemeal.upstreams" -}}
{{- $context := . -}}
{{- $internet := .Values.pullImageInternet -}}
{{- $names := list -}}
{{- $urls := dict -}}
{{- range include "piecemeal.registries" . | fromJsonArray -}}
{{- $hosts := .hosts -}}
{{- if and .id (not .hosts) -}}
{{- $domain := ternary (printf "%s.cr.aliyuncs.com" $context.Values.region) "cr.aliyuncs.com" (ne $context.Values.region "") -}}
{{- if $internet -}}
{{- if not $context.Values.region -}}
{{- fail (printf "pullImageInternet=true: the public name of a -vpc domain is only known within a region; set region, or the domains of the instance (p2p.registryDomains.%s)" .id) -}}
{{- end -}}
{{- $names = append $names (printf "*-vpc.%s" $domain) -}}
{{- $_ := set $urls (printf "*-vpc.%s" $domain) (list (printf "https://*.%s" $domain)) -}}
{{- end -}}
{{- $hosts = list (printf "*.%s" $domain) -}}
{{- else if .id -}}
{{- range .hosts -}}
{{- if hasSuffix ".cr.aliyuncs.com" . -}}
{{- $first := regexFind "^[^.]+" . -}}
{{- $twin := ternary (trimSuffix "-vpc" $first) (printf "%s-vpc" $first) (hasSuffix "-vpc" $first) -}}
{{- $hosts = append $hosts (printf "%s%s" $twin (trimPrefix $first .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $hosts -}}
{{- $names = append $names . -}}
{{- $at := get (dict "docker.io" "registry-1.docker.io") . | default . -}}
{{- if and $internet (hasSuffix ".cr.aliyuncs.com" .) -}}{{- $at = regexReplaceAll "^([^.*]+)-vpc\\." . "${1}." -}}{{- end -}}
{{- $_ := set $urls . (list (printf "https://%s" $at)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.upstreams -}}
{{- $names = append $names .name -}}
{{- $default := list (printf "https://%s" (get (dict "docker.io" "registry-1.docker.io") .name | default .name)) -}}
{{- $_ := set $urls .name (.urls | default (get $urls .name) | default $default) -}}
{{- end -}}
{{- $pairs := list -}}
{{- range $name := uniq $names -}}{{- range get $urls $name -}}{{- $pairs = append $pairs (printf "%s=%s" $name .) -}}{{- end -}}{{- end -}}
{{- toJson (uniq $pairs) -}}
{{- end }}

{{/* [key, items]: a list of TOML, one item a line. */}}
{{- define "piecemeal.toml.list" -}}
{{ index . 0 }} = [
{{- range index . 1 }}
  {{ toRawJson . }},
{{- end }}
]
{{- end }}

{{/* [context, whether credentials too]: what is said of single upstreams, as TOML. */}}
{{- define "piecemeal.upstreams.toml" -}}
{{- $context := index . 0 -}}
{{- $ca := list -}}{{- $credentials := list -}}{{- $tokens := list -}}{{- $site := list -}}
{{- range $index, $upstream := $context.Values.upstreams -}}
{{- if .caSecret -}}{{- $ca = append $ca (printf "%s=/etc/piecemeal/upstreams/%d/ca.pem" .name $index) -}}{{- end -}}
{{- if .credentialsSecret -}}{{- $credentials = append $credentials (printf "%s=%s:/etc/piecemeal/upstreams/%d/credentials" .name (.credentialsSecret.format | default "docker-config") $index) -}}{{- end -}}
{{- $name := .name -}}
{{- range .tokenServers -}}{{- $tokens = append $tokens (printf "%s=%s" $name .) -}}{{- end -}}
{{- if .serveSite -}}{{- $site = append $site .name -}}{{- end -}}
{{- end -}}
{{- include "piecemeal.toml.list" (list "upstream" (include "piecemeal.upstreams" $context | fromJsonArray)) }}
{{- with $ca }}
{{ include "piecemeal.toml.list" (list "upstream_ca" .) }}
{{- end }}
{{- if index . 1 }}
{{- with $credentials }}
{{ include "piecemeal.toml.list" (list "credentials" .) }}
{{- end }}
{{- with $tokens }}
{{ include "piecemeal.toml.list" (list "token_server" .) }}
{{- end }}
{{- with $site }}
{{ include "piecemeal.toml.list" (list "serve_site" .) }}
{{- end }}
{{- end }}
{{- if $context.Values.p2p.plusMode.ossInternetAccelerate }}
rewrite_redirects = ["oss-accelerate"]
{{- end }}
{{- with $context.Values.allowTargets }}
{{ include "piecemeal.toml.list" (list "allow_target" .) }}
{{- end }}
{{- end }}

{{/* [context, whether credentials too]: the volume with those files, if there are any. */}}
{{- define "piecemeal.upstreams.volume" -}}
{{- $withCredentials := index . 1 -}}
{{- $sources := list -}}
{{- range $index, $upstream := (index . 0).Values.upstreams -}}
{{- with .caSecret -}}{{- $sources = append $sources (dict "secret" (dict "name" .name "items" (list (dict "key" (.key | default "ca.crt") "path" (printf "%d/ca.pem" $index))))) -}}{{- end -}}
{{- if $withCredentials -}}
{{- with .credentialsSecret -}}{{- $sources = append $sources (dict "secret" (dict "name" .name "items" (list (dict "key" (.key | default ".dockerconfigjson") "path" (printf "%d/credentials" $index))))) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- with $sources -}}
- name: upstreams
  projected:
    defaultMode: 0440
    sources:
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- end }}

{{/* [context, image with its registry]: the accelerated name that the webhook gives it. */}}
{{- define "piecemeal.accelerated" -}}
{{- $values := (index . 0).Values -}}
{{- $port := int $values.p2p.port -}}
{{- $parts := splitn "/" 2 (index . 1) -}}
{{- $registry := $parts._0 -}}
{{- if or (not $parts._1) (not (regexMatch "^[a-z0-9][a-z0-9.-]*(:[0-9]+)?$" $registry)) (not (regexMatch "[.:]" $registry)) -}}
{{- fail (printf "tests.image: %q has no registry in front: write all of it, as docker.io/library/alpine:3.20" (index . 1)) -}}
{{- end -}}
{{- if eq $values.webhook.nameStyle "mirror" -}}
{{- index . 1 -}}
{{- else if eq $values.webhook.nameStyle "localhost" -}}
{{- printf "127.0.0.1:%d/%s/%s" $port (replace ":" "__" $registry) $parts._1 -}}
{{- else if hasSuffix ".cr.aliyuncs.com" $registry -}}
{{- $labels := splitn "." 2 $registry -}}
{{- printf "%s.distributed.%s:%d/%s" $labels._0 $labels._1 $port $parts._1 -}}
{{- else -}}
{{- printf "%s.piecemeal.internal:%d/%s" (replace ":" "." $registry) $port $parts._1 -}}
{{- end -}}
{{- end }}
