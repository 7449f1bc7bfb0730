"""What kwok writes into the status of pods and nodes: Go templates, with %(name)s for what Python fills in."""

ADDRESSES = """
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
{{ $hostNetwork := or .spec.hostNetwork false }}
podIP: {{ PodIPWith .spec.nodeName $hostNetwork .metadata.uid .metadata.name .metadata.namespace | Quote }}
startTime: {{ Now | Quote }}
phase: Running
"""

CONDITIONS = """
conditions:
{{ range list "Ready" "ContainersReady" }}
- type: {{ . }}
  status: "%(ready)s"
  lastTransitionTime: {{ Now | Quote }}
{{ end }}
"""

STARTED = """
- type: Initialized
  status: "True"
  lastTransitionTime: {{ Now | Quote }}
- type: PodReadyToStartContainers
  status: "True"
  lastTransitionTime: {{ Now | Quote }}
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  restartCount: 0
  ready: true
  {{ if eq (default "" .restartPolicy) "Always" }}
  started: true
  state: {running: {startedAt: {{ Now | Quote }}}}
  {{ else }}
  started: false
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}}}
  {{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  restartCount: 0
  started: true
  ready: %(ready)s
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
"""

NODE = """
conditions:
- type: Ready
  status: "True"
  reason: KubeletReady
  message: simulated
  lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
"""

# The containers as they are, but for readiness; one that waits starts again.
CONTAINERS = """
containerStatuses:
{{ range .status.containerStatuses }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  restartCount: {{ .restartCount }}
  started: true
  ready: %(ready)s
  state: {running: {startedAt: {{ dig "running" "startedAt" Now .state | Quote }}}}
  lastState: {{ YAML (or .lastState (dict)) 2 }}
{{ end }}
"""

# The first container has ended with the exit code that the annotation names.
TERMINATED = """
terminated:
        exitCode: {{ index $notes "%(prefix)scrash" | default "0" }}
        reason: {{ index $notes "%(prefix)scrash-reason" | default $reason | Quote }}
        message: {{ index $notes "%(prefix)scrash-message" | default "" | Quote }}
        startedAt: {{ .state.running.startedAt | Quote }}
        finishedAt: {{ Now | Quote }}
"""

CRASHED = """
{{ $notes := .metadata.annotations }}
{{ $reason := "Error" }}
containerStatuses:
{{ range $index, $_ := .status.containerStatuses }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  {{ if eq $index 0 }}
  restartCount: {{ add1 .restartCount }}
  started: false
  ready: false
  state:
      waiting: {reason: CrashLoopBackOff, message: "back-off restarting failed container"}
  lastState:
      %(terminated)s
  {{ else }}
  restartCount: {{ .restartCount }}
  started: true
  ready: true
  state: {{ YAML .state 2 }}
  {{ end }}
{{ end }}
"""

FINISHED = """
{{ $notes := or .metadata.annotations (dict) }}
{{ $failed := index $notes "%(prefix)scrash" }}
{{ $reason := ternary "Error" "Completed" (not (empty $failed)) }}
phase: {{ ternary "Failed" "Succeeded" (not (empty $failed)) }}
containerStatuses:
{{ range .status.containerStatuses }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  restartCount: 0
  started: false
  ready: false
  state:
      %(terminated)s
{{ end }}
"""
