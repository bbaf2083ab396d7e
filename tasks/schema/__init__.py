"""What a user can set, each field with its default and meaning: params.yaml and profiles/NAME.yaml.

Where these files lie and how they are read is said in ``tasks/project``.
"""
