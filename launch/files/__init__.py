"""Files that start a run on a cluster, a module a tool. All start torchrun on each host."""
