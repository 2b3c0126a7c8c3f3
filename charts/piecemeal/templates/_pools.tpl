{{/*
Pools of nodes, and the nodes in them. Terms describe the nodes: a list of alternatives, each a list of requirements
{key, operator, values} that all have to hold. They become a nodeAffinity's nodeSelectorTerms.
*/}}

{{/* Every pool as {slug, suffix, topology, terms}, JSON. The slug is the pool's name for daemons, the suffix that of its objects. */}}
{{- define "piecemeal.pools" -}}
{{- $pools := list -}}
{{- $slugs := list -}}
{{- range .Values.p2p.plusMode.edgeNodePools -}}
{{- $name := .name | default "" -}}
{{- $id := .id | default "" -}}
{{- if or $name $id .selector -}}
{{- $isLabel := regexMatch "^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$" $name -}}
{{- $terms := list -}}
{{- if $id -}}{{- $terms = append $terms (list (dict "key" "alibabacloud.com/nodepool-id" "operator" "In" "values" (list $id))) -}}{{- end -}}
{{- if $isLabel -}}{{- $terms = append $terms (list (dict "key" "apps.openyurt.io/nodepool" "operator" "In" "values" (list $name))) -}}{{- end -}}
{{- if .selector -}}
{{- $all := list -}}
{{- range $key, $value := .selector -}}{{- $all = append $all (dict "key" $key "operator" "In" "values" (list (toString $value))) -}}{{- end -}}
{{- $terms = append $terms $all -}}
{{- end -}}
{{- if not $terms -}}
{{- fail (printf "p2p.plusMode.edgeNodePools: %q cannot be the value of a node's label; give the pool's id, or a selector" $name) -}}
{{- end -}}
{{- $key := $name | default $id | default (values (.selector | default dict) | sortAlpha | join "-") -}}
{{- $plain := regexReplaceAll "[^a-z0-9-]+" (lower $key) "-" | trimAll "-" -}}
{{- $slug := include "piecemeal.short" (list $plain 17) -}}
{{- if ne $plain $key -}}{{- $slug = printf "%s-%s" (trunc 11 $plain | trimSuffix "-") (sha256sum $key | trunc 5) | trimPrefix "-" -}}{{- end -}}
{{- if has $slug $slugs -}}{{- fail (printf "p2p.plusMode.edgeNodePools: %q is there twice" $key) -}}{{- end -}}
{{- $slugs = append $slugs $slug -}}
{{- $pools = append $pools (dict "slug" $slug "suffix" (printf "-%s" $slug) "topology" (ternary "openyurt.io/nodepool" "" $isLabel) "terms" $terms) -}}
{{- end -}}
{{- end -}}
{{- if not $pools -}}
{{- $pools = list (dict "slug" "default" "suffix" "" "topology" "" "terms" (list (list))) -}}
{{- end -}}
{{- toJson $pools -}}
{{- end }}

{{/* Every node that is in some pool. */}}
{{- define "piecemeal.terms.inside" -}}
{{- $terms := list -}}
{{- range include "piecemeal.pools" . | fromJsonArray -}}{{- $terms = concat $terms .terms -}}{{- end -}}
{{- toJson $terms -}}
{{- end }}

{{/* Every node that is in no pool: of each term one requirement does not hold. Empty where one pool has all nodes. */}}
{{- define "piecemeal.terms.outside" -}}
{{- $factors := list -}}
{{- range include "piecemeal.terms.inside" . | fromJsonArray -}}
{{- $either := list -}}
{{- range . -}}{{- $either = append $either (list (dict "key" .key "operator" "NotIn" "values" .values)) -}}{{- end -}}
{{- $factors = append $factors $either -}}
{{- end -}}
{{- include "piecemeal.terms.all" $factors -}}
{{- end }}

{{/* Several lists of terms that all have to hold, as one. */}}
{{- define "piecemeal.terms.all" -}}
{{- $terms := list (list) -}}
{{- range $factor := . -}}
{{- $next := list -}}
{{- range $term := $terms -}}{{- range $more := $factor -}}{{- $next = append $next (concat $term $more) -}}{{- end -}}{{- end -}}
{{- if gt (len $next) 128 -}}{{- fail "p2p.plusMode.edgeNodePools: the selectors have too many labels together; give the nodes of each pool one label of its own, and select by that" -}}{{- end -}}
{{- $terms = $next -}}
{{- end -}}
{{- toJson $terms -}}
{{- end }}

{{/* Nodes that are machines, without virtual nodes. For DaemonSets, which would otherwise run on virtual nodes too. */}}
{{- define "piecemeal.terms.machines" -}}
- - {key: type, operator: NotIn, values: [virtual-kubelet]}
  - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
{{- end }}

{{/* The nodes that mirrors and schedulers are pinned to. */}}
{{- define "piecemeal.terms.pinned" -}}
{{- if .Values.p2p.plusMode.nodeSelectorEnable }}
- - {key: k8s.aliyun.com/p2p-plus-node, operator: In, values: ["true"]}
- - {key: piecemeal.dev/plus-node, operator: In, values: ["true"]}
{{- else }}
- []
{{- end }}
{{- end }}

{{/* The nodes that the API server can reach. */}}
{{- define "piecemeal.terms.cloud" -}}
- - {key: openyurt.io/is-edge-worker, operator: NotIn, values: ["true"]}
  - {key: alibabacloud.com/is-edge-worker, operator: NotIn, values: ["true"]}
{{- end }}

{{/* nodeSelectorTerms of several lists of terms, JSON; nothing when they ask for nothing. */}}
{{- define "piecemeal.terms" -}}
{{- $selectors := list -}}
{{- range include "piecemeal.terms.all" . | fromJsonArray -}}
{{- if . -}}{{- $selectors = append $selectors (dict "matchExpressions" .) -}}{{- end -}}
{{- end -}}
{{- if $selectors -}}{{- toJson $selectors -}}{{- end -}}
{{- end }}
