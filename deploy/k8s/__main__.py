"""`python -m deploy.k8s`: write the manifests that are made of facts (`make manifests`)."""

from deploy.k8s.manifests import REPOSITORY, generated

for path, text in generated().items():
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(REPOSITORY))
