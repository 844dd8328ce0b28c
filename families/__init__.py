"""Model families: one row in the registry's table and one folder each.

``contract``     what a family offers to the export and to the benchmarks
``registry``     the table: a family's name, its module, its configurations
``index``        the rules of a checkpoint's ``model_index.json``
``weight_files`` files of weights, read and recognised
``weights``      weights by name: checked, and changed for smaller checkpoints
``uid_diff/``    UID-Diff
``deblurdiff/``  DeblurDiff
``restorers/``   networks without a denoising loop
"""
