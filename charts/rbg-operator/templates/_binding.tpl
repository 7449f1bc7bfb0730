{{/* A binding of the role of the same name to the operator: root, kind, name; namespace, role. */}}
{{- define "rbg-operator.bind" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "rbg-operator.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .role | default "ClusterRole" }}
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "rbg-operator.serviceAccountName" .root }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}
