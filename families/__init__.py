"""Model families: one row in the registry's table and one folder each.

``contract``   what a family offers to the export and to the benchmarks
``registry``   the table: a family's name, its module, its configurations
``uid_diff/``  UID-Diff
"""
