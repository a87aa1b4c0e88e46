# The quickstart in a container:   docker build -t siegebench . && docker run --rm -v "$PWD/results:/srv/siege/results" siegebench
# Any other command:               docker run --rm -v "$PWD/results:/srv/siege/results" siegebench list attacks
# With a GPU:                      docker run --rm --gpus all ... ; rows and the page are written below results/.
FROM python:3.12-slim

WORKDIR /opt/siegebench
COPY . .
RUN python -m pip install --no-cache-dir -e '.[torchattacks,art,wandb]' -c constraints.txt \
    && useradd --create-home --home-dir /srv/siege siege

USER siege
WORKDIR /srv/siege
ENTRYPOINT ["siegebench"]
CMD ["run", "quickstart"]
